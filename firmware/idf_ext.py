"""idf.py ota_flash, ota_check and ota_config: three doors to the program bmsota, and nothing else.

    idf.py build ota_flash          build, publish the build, update the devices
    idf.py ota_flash                the same with the build that is there
    idf.py ota_check                ask the devices what they would get
    idf.py ota_config               write or change ota_deploy_config.json

idf.py loads this file from the project's folder (ESP-IDF 4.1 and newer) and from a component that takes part in the build
(6.0 and newer). The program is the one that BMSOTA names, or else the one on PATH. It runs in the project's folder with
this terminal, and its exit code becomes that of idf.py: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 a device failed or
rolled back, 5 unreachable or timed out.

Python 3.8 or newer, standard library only: it must load in every environment that idf.py brings along.
"""

import os
import shutil
import signal
import subprocess
import sys

CONFIG = {'names': ['--config'], 'metavar': 'FILE', 'help': 'Deployment settings. Default: ota_deploy_config.json in the project.'}
FORCE = {'names': ['--force'], 'is_flag': True, 'help': 'Skip the comparison of versions, and no other check.'}
VERSION = {'names': ['--version'], 'metavar': 'VER', 'help': "Version of the release. Default: the one in the image's own description."}

HOW_TO_GET = """Build it from a clone of bmsota with "go build -o bmsota ./cmd/bmsota", then put it into a folder of PATH, or set
BMSOTA to where it is: export BMSOTA=/path/to/bmsota"""


def find_program():
    """The path of bmsota; absolute, because it is started in another folder than this one."""
    named = os.environ.get('BMSOTA')
    found = shutil.which(named or 'bmsota')
    if found:
        return os.path.abspath(found)
    why = 'BMSOTA is "{}", where there is no program.'.format(named) if named else 'The program bmsota is not on PATH.'
    # A text makes Python print it on stderr and end with 1.
    raise SystemExit('{}\n{}'.format(why, HOW_TO_GET))


def run(arguments, project, build_dir):
    """Starts bmsota and waits. Returns only when it was successful, so that idf.py goes on with the next command."""
    command = [find_program()] + arguments
    environment = dict(os.environ, BMSOTA_BUILD_DIR=build_dir)
    sys.stdout.flush()  # what idf.py has said comes first in a log, too
    # Ctrl-C reaches bmsota as well, and what that makes of it counts. Not by catching KeyboardInterrupt: raised at the
    # moment that bmsota ends, it makes Python lose the exit code and take it for 0.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.call(command, cwd=project, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        # idf.py hands SystemExit through. A signal becomes the code that a shell gives it.
        raise SystemExit(code if code > 0 else 128 - code)


def action_extensions(base_actions, project_path):
    def command(verb):
        def callback(name, ctx, global_args, force=False, config=None, version=None):
            arguments = [verb]
            if force:
                arguments.append('--force')
            if config:
                # A relative path is meant from where the person stands, which idf.py -C is not.
                away = os.path.realpath(os.getcwd()) != os.path.realpath(project_path)
                arguments += ['--config', os.path.abspath(config) if away else config]
            if version:
                arguments += ['--version', version]
            run(arguments, project_path, getattr(global_args, 'build_dir', None) or os.path.join(project_path, 'build'))
        return callback

    actions = {
        'ota_flash': {
            'callback': command('flash'),
            'help': 'Deploy firmware via OTA update.\n\nDeploys the build that is there; "idf.py build ota_flash" makes one first.',
            'options': [FORCE, CONFIG, VERSION],
            # All kinds of build come first where they are asked for ("build" is another name of "all").
            'order_dependencies': ['all', 'app'],
        },
        'ota_check': {
            'callback': command('check'),
            'help': 'Check for available OTA updates.',
            'options': [CONFIG],
        },
        'ota_config': {
            'callback': command('config'),
            'help': 'Configure OTA deployment settings.',
            'options': [CONFIG],
        },
    }
    # Loaded twice, from a component and from the project, the first one stays.
    known = base_actions.get('actions', {})
    return {'version': '1', 'actions': {name: action for name, action in actions.items() if name not in known}}
