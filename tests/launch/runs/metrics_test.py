"""What a run logs: exact after resumes, whole on a full disk, refused where it is damaged."""

import json
import pathlib
import resource
import tempfile

from absl.testing import absltest
from absl.testing import parameterized

from launch.runs import metrics


def limit_file_size(limit):
  """Forbids this process files above so many bytes: what a full disk looks like; None allows."""
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))


class MetricsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'metrics.jsonl'
    self.addCleanup(limit_file_size, None)

  def _open(self, after=0, tensorboard=False):
    return metrics.Metrics(self.folder, after=after, tensorboard=tensorboard)

  def _steps(self):
    return [json.loads(line)['step'] for line in self.path.read_text().splitlines()]

  def test_a_full_disk_is_an_error_at_flush_and_no_line_is_lost_or_torn(self):
    log = self._open()
    log.write(1, {'loss': 1.0})
    log.flush()
    limit_file_size(self.path.stat().st_size + 5)
    log.write(2, {'loss': 0.5})
    for _ in range(2):
      with self.assertRaises(OSError):
        log.flush()
    limit_file_size(None)
    log.write(3, {'loss': float('nan')})
    log.close()
    self.assertEqual(self._steps(), [1, 2, 3])
    self.assertIsNone(json.loads(self.path.read_text().splitlines()[-1])['loss'])

  def test_closing_on_a_full_disk_leaves_the_reason_of_the_run_alone(self):
    log = self._open()
    log.write(1, {'loss': 1.0})
    limit_file_size(5)
    with self.assertLogs(level='WARNING') as logs:
      log.close()
    self.assertIn('not written', logs.output[0])

  def test_a_full_disk_costs_tensorboard_and_not_the_run(self):
    log = self._open(tensorboard=True)
    limit_file_size(4096)
    with self.assertLogs(level='WARNING') as logs:
      for step in range(400):
        log._board.write(step, {'loss': 1.0})
      log._board.flush()
    limit_file_size(None)
    self.assertLen(logs.output, 1)
    log.write(1, {'loss': 1.0})
    log.close()
    self.assertEqual(self._steps(), [1])

  def test_two_board_files_of_one_second_have_two_names(self):
    for after in (0, 2, 2):
      log = self._open(after, tensorboard=True)
      log.write(after + 1, {'loss': 1.0})
      log.close()
    files = list((self.folder / 'tensorboard').iterdir())
    self.assertLen(files, 3)
    self.assertTrue(all('tfevents' in f.name and f.stat().st_size > 60 for f in files))

  def test_goes_on_after_a_step_and_drops_a_torn_line(self):
    self.path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    log = self._open(after=2)
    log.write(3, {})
    log.close()
    self.assertEqual(self._steps(), [1, 2, 3])

  @parameterized.parameters(
    b'\xff\x00\n{"step": 2}\n', b'[]\n', b'{"step": 1\n{"step": 2}\n', b'{"step": "1"}\n'
  )
  def test_a_damaged_line_is_named(self, content):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(metrics.Damaged, 'line 1 is damaged'):
      self._open(after=2)
    self.assertEqual(self.path.read_bytes(), content)

  def test_a_directory_in_its_place_is_named(self):
    self.path.mkdir()
    with self.assertRaisesRegex(metrics.Damaged, 'is a directory'):
      self._open()


if __name__ == '__main__':
  absltest.main()
