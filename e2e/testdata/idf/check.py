"""Holds firmware/idf_ext.py to its promises: check.py RULES EXTENSION COMMAND...

COMMAND starts idf.py, the real one or loader.py; RULES is the major version of ESP-IDF whose rules that follows. The
program bmsota is a stand-in that writes down how it was called.
"""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

RULES, EXTENSION, IDF = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
HERE = os.path.dirname(os.path.abspath(__file__))

STAND_IN = """#!/bin/sh
printf '%s|' "$0" "$(pwd)" "$BMSOTA_BUILD_DIR" "$@" >>"$CALLS"
echo >>"$CALLS"
{}
"""


class IDFExt(unittest.TestCase):
    def setUp(self):
        self.top = os.path.realpath(tempfile.mkdtemp(prefix='idf-ext-'))
        self.addCleanup(shutil.rmtree, self.top)
        self.project = os.path.join(self.top, 'project')
        os.mkdir(self.project)
        shutil.copy(EXTENSION, os.path.join(self.project, 'idf_ext.py'))
        with open(os.path.join(self.project, 'CMakeLists.txt'), 'w') as f:
            f.write('project(bms)\n')
        self.calls = os.path.join(self.top, 'calls')
        self.on_path = self.stand_in('bin', 'exit 0')

    def stand_in(self, folder, body):
        path = os.path.join(self.top, folder, 'bmsota')
        os.makedirs(os.path.dirname(path))
        with open(path, 'w') as f:
            f.write(STAND_IN.format(body))
        os.chmod(path, 0o755)
        return path

    def start(self, *arguments, cwd=None, **variables):
        environment = dict(os.environ, CALLS=self.calls, IDF_EXTRA_ACTIONS_PATH=os.path.join(HERE, 'actions'), IDF_RULES=str(RULES),
                           PATH=os.path.dirname(self.on_path) + os.pathsep + os.environ['PATH'])
        for name in ('BMSOTA', 'PYTHONUNBUFFERED'):
            environment.pop(name, None)
        environment.update(variables)
        return subprocess.Popen(IDF + list(arguments), cwd=cwd or self.project, env=environment, text=True, start_new_session=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def idf(self, *arguments, said='', **rest):
        """Runs idf.py; returns exit code, stdout, stderr and how bmsota and the build were called."""
        if os.path.exists(self.calls):
            os.remove(self.calls)
        process = self.start(*arguments, **rest)
        out, err = process.communicate(said, timeout=60)
        calls = []
        if os.path.exists(self.calls):
            with open(self.calls) as f:
                calls = [line.rstrip('\n').rstrip('|') for line in f]
        return process.returncode, out, err, calls

    def call(self, *arguments, program=None, build='build'):
        return '|'.join([program or self.on_path, self.project, os.path.join(self.project, build), *arguments])

    def test_python_3_8_reads_it(self):
        with open(EXTENSION) as f:
            ast.parse(f.read(), feature_version=(3, 8))

    def test_help_names_commands_and_options(self):
        code, out, err, _ = self.idf('--help')
        self.assertEqual(code, 0, err)
        for command in ('ota_flash', 'ota_check', 'ota_config'):
            self.assertIn(command, out)
        for command, options in (('ota_flash', ['--force', '--config FILE', '--version VER']), ('ota_check', ['--config FILE']),
                                 ('ota_config', ['--config FILE'])):
            code, out, err, calls = self.idf(command, '--help')
            self.assertEqual((code, calls), (0, []), err)
            for option in options:
                self.assertIn(option, ' '.join(out.split()))

    def test_options_are_handed_on(self):
        for given, want in (
                (['ota_flash'], ['flash']),
                (['ota_flash', '--force'], ['flash', '--force']),
                (['ota_flash', '--version', '1.2.0'], ['flash', '--version', '1.2.0']),
                (['ota_flash', '--config', 'my settings.json'], ['flash', '--config', 'my settings.json']),
                (['ota_flash', '--version', '1.2.0', '--config', '/etc/x.json', '--force'],
                 ['flash', '--force', '--config', '/etc/x.json', '--version', '1.2.0']),
                (['ota_check'], ['check']),
                (['ota_check', '--config', 'x.json'], ['check', '--config', 'x.json']),
                (['ota_config', '--config', 'x.json'], ['config', '--config', 'x.json'])):
            code, _, err, calls = self.idf(*given)
            self.assertEqual((code, calls), (0, [self.call(*want)]), err)

    def test_option_that_is_not_there_starts_nothing(self):
        for arguments in (['ota_check', '--force'], ['ota_config', '--version', '1.0.0'], ['ota_flash', '--config']):
            code, _, _, calls = self.idf(*arguments)
            self.assertEqual((code, calls), (2, []))

    def test_build_comes_first(self):
        for arguments in (['build', 'ota_flash'], ['ota_flash', 'build'], ['ota_flash', 'all']):
            code, _, err, calls = self.idf(*arguments)
            self.assertEqual((code, calls), (0, ['all build', self.call('flash')]), err)
        code, _, err, calls = self.idf('ota_flash', 'app')
        self.assertEqual((code, calls), (0, ['app build', self.call('flash')]), err)

    def test_build_that_fails_is_not_deployed(self):
        code, _, _, calls = self.idf('build', 'ota_flash', FAIL_BUILD='1')
        self.assertEqual((code, calls), (2, ['all build']))

    def test_build_folder_is_handed_on(self):
        code, _, err, calls = self.idf('-B', os.path.join(self.project, 'release'), 'build', 'ota_flash')
        self.assertEqual((code, calls), (0, ['all release', self.call('flash', build='release')]), err)

    def test_from_another_folder(self):
        code, _, err, calls = self.idf('-C', self.project, 'ota_check', '--config', 'x.json', cwd=self.top)
        self.assertEqual((code, calls), (0, [self.call('check', '--config', os.path.join(self.top, 'x.json'))]), err)

    def test_exit_code_is_passed_on(self):
        for want in range(6):
            program = self.stand_in('ends-{}'.format(want), 'exit {}'.format(want))
            code, out, err, calls = self.idf('ota_flash', 'ota_check', BMSOTA=program)
            verbs = ['flash'] if want else ['flash', 'check']
            self.assertEqual((code, calls), (want, [self.call(v, program=program) for v in verbs]), out + err)

    def test_end_by_a_signal_is_no_success(self):
        code, _, _, _ = self.idf('ota_flash', BMSOTA=self.stand_in('killed', 'kill -9 $$'))
        self.assertEqual(code, 128 + signal.SIGKILL)

    def test_interrupt_is_answered_by_the_program(self):
        program = self.stand_in('patient', "trap 'exit 4' INT; echo ready; while :; do sleep 0.1; done")
        process = self.start('ota_flash', BMSOTA=program)
        while process.stdout.readline() != 'ready\n':
            self.assertIsNone(process.poll())
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 4)

    def test_terminal_is_shared(self):
        code, out, err, _ = self.idf('ota_config', said='nas.local\n',
                                     BMSOTA=self.stand_in('asks', 'read answer; echo "heard $answer"; echo "to stderr" >&2'))
        self.assertEqual(code, 0, err)
        self.assertIn('to stderr', err)
        self.assertLess(out.index('Executing action: ota_config'), out.index('heard nas.local'))

    def test_variable_wins_over_path(self):
        program = self.stand_in('elsewhere', 'exit 0')
        code, _, err, calls = self.idf('ota_check', BMSOTA=program)
        self.assertEqual((code, calls), (0, [self.call('check', program=program)]), err)
        code, _, err, calls = self.idf('ota_check', BMSOTA='../elsewhere/bmsota')
        self.assertEqual((code, calls), (0, [self.call('check', program=program)]), err)

    def test_missing_program_is_explained(self):
        os.remove(self.on_path)
        without = os.pathsep.join(p for p in os.environ['PATH'].split(os.pathsep) if not os.path.exists(os.path.join(p, 'bmsota')))
        for variables, want in (({'PATH': without}, 'not on PATH'), ({'BMSOTA': '/nowhere/bmsota'}, '/nowhere/bmsota')):
            code, _, err, _ = self.idf('ota_flash', **variables)
            self.assertEqual(code, 1)
            for words in (want, 'go build', 'export BMSOTA='):
                self.assertIn(words, err)
            self.assertNotIn('Traceback', err)

    def test_component_brings_the_commands_since_esp_idf_6(self):
        component = os.path.join(self.project, 'components', 'ota_manager')
        os.makedirs(component)
        os.mkdir(os.path.join(self.project, 'build'))
        with open(os.path.join(self.project, 'build', 'project_description.json'), 'w') as f:
            json.dump({'build_component_info': {'ota_manager': {'dir': component}},
                       'all_component_info': {'ota_manager': {'source': 'project_components'}}}, f)
        shutil.copy(EXTENSION, component)
        # Beside the project's own file.
        code, out, err, calls = self.idf('ota_flash')
        self.assertEqual((code, calls), (0, [self.call('flash')]), err)
        self.assertNotIn('already', out + err)
        # Alone.
        os.remove(os.path.join(self.project, 'idf_ext.py'))
        code, out, err, calls = self.idf('ota_flash')
        if RULES < 6:
            self.assertNotEqual((code, calls), (0, [self.call('flash')]))
        else:
            self.assertEqual((code, calls), (0, [self.call('flash')]), err)


if __name__ == '__main__':
    unittest.main(argv=sys.argv[:1])
