"""The run directory: damaged files in it are named or set aside, never taken for what they were."""

import contextlib
import io
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from launch.runs import ledger
from launch.runs import rundir

_ABOUT = {'experiment': 'vision', 'size': '', 'transform': 'identity()', 'config': {'seed': 0}}


class RunDirectoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = folder / 'run'
    self.assertEqual(rundir.open_run(self.workdir, _ABOUT), 'new')

  def _events(self):
    lines = (self.workdir / 'ledger.jsonl').read_text().splitlines()
    return [json.loads(line)['event'] for line in lines if line.endswith('}')]

  def test_resumes_until_there_is_a_result(self):
    self.assertEqual(rundir.open_run(self.workdir, _ABOUT), 'resumed')
    rundir.finish(self.workdir, {'status': 'finished'})
    self.assertEqual(rundir.open_run(self.workdir, _ABOUT), 'finished')

  @parameterized.parameters(b'', b'{"status": "fini', b'[]', b'\xff\xfe', b'{"status": "failed"}')
  def test_a_damaged_result_is_set_aside_and_made_again(self, content):
    (self.workdir / 'result.json').write_bytes(content)
    self.assertEqual(rundir.open_run(self.workdir, _ABOUT), 'resumed')
    (aside,) = self.workdir.glob('result.json.damaged-*')
    self.assertEqual(aside.read_bytes(), content)
    self.assertEqual(self._events(), ['damaged'])
    rundir.finish(self.workdir, {'status': 'finished'})
    self.assertEqual(rundir.open_run(self.workdir, _ABOUT), 'finished')

  def test_a_directory_in_place_of_the_result_is_set_aside(self):
    (self.workdir / 'result.json').mkdir()
    self.assertEqual(rundir.open_run(self.workdir, _ABOUT), 'resumed')
    rundir.finish(self.workdir, {'status': 'finished'})

  @parameterized.parameters('', '{', '[]', 'null', '5', '{"config": 5}')
  def test_a_damaged_configuration_is_an_error_that_names_it(self, text):
    (self.workdir / 'config.json').write_text(text)
    with self.assertRaisesRegex(ValueError, str(self.workdir)):
      rundir.open_run(self.workdir, _ABOUT)

  def test_a_torn_line_of_the_ledger_does_not_swallow_the_next(self):
    (self.workdir / 'ledger.jsonl').write_text('{"time": "x", "ev')
    for event in ('start', 'save'):
      ledger.append(self.workdir, event)
    self.assertEqual(self._events(), ['start', 'save'])

  def test_a_diary_that_cannot_be_written_costs_neither_run_nor_exit_code(self):
    for name in ('ledger.jsonl', 'failure.json'):
      (self.workdir / name).mkdir()
    with self.assertLogs(level='ERROR') as logs, contextlib.redirect_stderr(io.StringIO()) as said:
      rundir.fail(self.workdir, 74, 'no room', 3)
    self.assertIn('failure.json cannot be written', logs.output[0])
    self.assertIn('"reason": "no room"', said.getvalue())


if __name__ == '__main__':
  absltest.main()
