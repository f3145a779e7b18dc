"""Kill -9 at any moment: the run that is started again ends as if nothing had happened."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from absl.testing import absltest
from absl.testing import parameterized

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_SECONDS = 300
_STEPS = 60


def command(workdir, transform):
  """The run as a user types it; every fifth step is saved, every second logged."""
  return [
    *(sys.executable, '-m', 'launch.run', '--experiment=vision', '--size=smoke', '--seed=3'),
    f'--transform={transform}',
    f'--workdir={workdir}',
    *(f'--set=steps={_STEPS}', '--checkpoint_every=5', '--log_every=2', '--keep=2'),
  ]


def start(workdir, transform, cache):
  environment = {
    **os.environ,
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
  }
  with open(f'{workdir}.log', 'a', encoding='utf-8') as log:
    return subprocess.Popen(
      command(workdir, transform), cwd=_ROOT, env=environment, stdout=log, stderr=log
    )


def finish(process, workdir):
  code = process.wait(timeout=_SECONDS)
  assert code == 0, pathlib.Path(f'{workdir}.log').read_text()[-3000:]


def steps_logged(workdir):
  """The last whole line's step, 0 before the first."""
  try:
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return json.loads(lines[-1])['step'] if lines else 0
  except (OSError, ValueError):
    return 0


def writing(workdir):
  """Whether a checkpoint is half written at this moment."""
  folder = workdir / 'checkpoints'
  try:
    return any(
      not f.name.isdigit() or not (f / 'manifest.json').exists()
      for f in folder.iterdir()
      if f.is_dir()
    )
  except OSError:
    return False


def kill_when(process, condition):
  """Kills the process as soon as the condition holds; returns whether it was still running."""
  deadline = time.monotonic() + _SECONDS
  while process.poll() is None:
    assert time.monotonic() < deadline, 'neither the moment nor the end came'
    if condition():
      process.send_signal(signal.SIGKILL)
      process.wait(timeout=30)
      return True
    time.sleep(0.002)
  return False


class ResumeTest(parameterized.TestCase):
  def _check(self, transform, kills):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    whole, killed, cache = folder / 'whole', folder / 'killed', folder / 'cache'
    finish(start(whole, transform, cache), whole)
    rng, happened = random.Random(transform), 0
    for number in range(kills):
      process = start(killed, transform, cache)
      begun = steps_logged(killed)
      if number % 2:
        moment = lambda: writing(killed)
      else:
        # Spread over what is left, so that the later kills find something to interrupt.
        ahead = rng.randint(1, max(2, (_STEPS - begun) // (kills - number)))
        moment = lambda at=begun + ahead: steps_logged(killed) >= at
      happened += kill_when(process, moment)
    finish(start(killed, transform, cache), killed)
    self.assertGreaterEqual(happened, max(1, kills - 2))
    results = [json.loads((d / 'result.json').read_text()) for d in (whole, killed)]
    self.assertEqual(results[0]['digest'], results[1]['digest'])
    self.assertEqual(results[0]['figures'], results[1]['figures'])
    self.assertEqual(*((d / 'metrics.jsonl').read_bytes() for d in (whole, killed)))
    again = subprocess.run(
      command(killed, transform), cwd=_ROOT, capture_output=True, text=True, timeout=_SECONDS
    )
    self.assertEqual(again.returncode, 0)
    self.assertIn('Finished already', again.stderr)

  def test_two_kills(self):
    self._check('rigl(0.8, every=7, end=50)', 2)

  @parameterized.parameters('rigl(0.8, every=7, end=50)', 'lsq(bits=4)')
  @pytest.mark.slow
  def test_twenty_kills(self, transform):
    self._check(transform, 20)


if __name__ == '__main__':
  absltest.main()
