"""What idf.py builds with, for a test: it says that it was called and ends as FAIL_BUILD says."""

import os


def build(name, ctx, global_args):
    with open(os.environ['CALLS'], 'a') as f:
        f.write('{} {}\n'.format(name, os.path.basename(global_args.build_dir)))
    if os.environ.get('FAIL_BUILD'):
        raise SystemExit(2)


def action_extensions(base_actions, project_path):
    return {'actions': {
        'all': {'aliases': ['build'], 'callback': build, 'help': 'Build the project.'},
        'app': {'callback': build, 'help': 'Build only the app.'},
    }}
