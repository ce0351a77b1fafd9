"""A small idf.py, for tests where ESP-IDF is not installed: it finds, loads and runs extensions by the rules of idf.py.

    IDF_RULES=5 python3 loader.py [-C DIR] [-B DIR] COMMAND...      as ESP-IDF 5.5 does
    IDF_RULES=6 python3 loader.py [-C DIR] [-B DIR] COMMAND...      as ESP-IDF 6.0 does

The rules differ in where extensions come from (5: the project alone; 6: components of the last build first) and in what
happens to a name that is taken (5: the later one wins; 6: the earlier one stays, with a warning, and an extension that
names no version of the interface is refused). The commands of idf.py itself come from the folders in
IDF_EXTRA_ACTIONS_PATH, which the real idf.py reads as well.
"""

import importlib
import importlib.util
import json
import os
import pkgutil
import sys

import click

RULES = os.environ['IDF_RULES']


class Globals(dict):
    """The global options: keys and attributes are the same."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)


class Task:
    def __init__(self, name, spec, arguments):
        self.name, self.spec, self.arguments = name, spec, arguments

    def comes_after(self, kind):
        return self.spec.get(kind, [])


def option(spec):
    rest = {key: value for key, value in spec.items() if key not in ('names', 'scope')}
    return click.Option(spec['names'], **rest)


class IDF(click.Group):
    def __init__(self, actions):
        super().__init__('idf.py', chain=True, invoke_without_command=True, no_args_is_help=True, result_callback=self.execute,
                         params=[click.Option(['-C', '--project-dir'], default=os.getcwd()), click.Option(['-B', '--build-dir'])])
        self.actions, self.known_as = actions, {}
        for name, spec in actions.items():
            params = [option(o) for o in spec.get('options', [])]
            self.add_command(click.Command(name, callback=self.task_maker(name), params=params, help=spec['help']))
            self.known_as.update({alias: name for alias in [name] + spec.get('aliases', [])})

    def task_maker(self, name):
        return lambda **arguments: Task(name, self.actions[name], arguments)

    def get_command(self, ctx, name):
        return super().get_command(ctx, self.known_as.get(name, name))

    def execute(self, tasks, **options):
        ctx = click.get_current_context()
        args = Globals(options)
        args.project_dir = os.path.realpath(args.project_dir)
        args.build_dir = os.path.realpath(args.build_dir or os.path.join(args.project_dir, 'build'))
        given, planned = {t.name: t for t in reversed(tasks)}, {}

        def plan(task):
            if task.name in planned:
                return
            for name in task.comes_after('dependencies'):
                plan(given.get(name) or ctx.invoke(self.get_command(ctx, name)))
            for name in task.comes_after('order_dependencies'):
                if name in given:
                    plan(given[name])
            planned[task.name] = task

        for task in tasks:
            plan(task)
        for task in planned.values():
            print('Executing action:', task.name)
            task.spec['callback'](task.name, ctx, args, **task.arguments)


def merge(actions, more):
    if RULES == '6' and not more.get('version'):
        raise AttributeError('the extension has no "version"')
    for name, spec in more.get('actions', {}).items():
        if RULES == '6' and name in actions:
            print('WARNING: action', name, 'is defined already', file=sys.stderr)
        else:
            actions[name] = spec


def own_actions():
    actions = {}
    for folder in os.environ['IDF_EXTRA_ACTIONS_PATH'].split(';'):
        sys.path.append(folder)
        for module in sorted(m.name for m in pkgutil.iter_modules([folder]) if m.name.endswith('_ext')):
            actions.update(importlib.import_module(module).action_extensions({'actions': actions}, PROJECT)['actions'])
    return actions


def extensions():
    """The functions action_extensions of what takes part, in the order in which they are asked."""
    if RULES == '5':
        if os.path.exists(os.path.join(PROJECT, 'idf_ext.py')):
            sys.path.append(PROJECT)
            yield importlib.import_module('idf_ext').action_extensions
        return
    folders = []
    description = os.path.join(BUILD, 'project_description.json')
    if os.path.exists(description):
        with open(description) as f:
            folders = [c['dir'] for c in json.load(f)['build_component_info'].values()]
    for folder in folders + [PROJECT]:
        path = os.path.join(folder, 'idf_ext.py')
        if os.path.exists(path):
            name = 'idf_ext_' + os.path.basename(folder)
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield module.action_extensions


def early(flag, default):
    """The value of a global option, before the commands are known."""
    return os.path.realpath(sys.argv[sys.argv.index(flag) + 1]) if flag in sys.argv else default


PROJECT = early('-C', os.path.realpath(os.getcwd()))
BUILD = early('-B', os.path.join(PROJECT, 'build'))

if __name__ == '__main__':
    sys.dont_write_bytecode = True
    actions = own_actions()
    for extension in extensions():
        merge(actions, extension({'actions': actions, 'global_options': [], 'global_action_callbacks': []}, PROJECT))
    IDF(actions)(prog_name='idf.py')
