"""The demo's command line: wrong flags are refused before any work."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from launch import demo

_ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
  'wrong, message',
  [
    ({'config': 'full'}, "Configurations of digits are '' and 'smoke', got 'full'"),
    ({'models': 'cnn,mlp'}, r"got \['cnn', 'mlp'\]"),
    ({'models': ''}, r'got \[\]'),
    ({'seed': '-1'}, 'seed must be at least 0 and less than .*, got -1'),
    ({'workdir': '{full}'}, 'holds files already'),
    ({'workdir': '{full}/kept/run'}, 'cannot be created'),
  ],
  ids=str,
)
def test_bad_flags_are_refused_and_nothing_is_written(wrong, message, tmp_path):
  (tmp_path / 'kept').write_text('old')
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['demo'])
  given = {'workdir': f'{tmp_path}/run'}
  given |= {name: value.format(full=tmp_path) for name, value in wrong.items()}
  with flagsaver.as_parsed(**given), pytest.raises(demo.app.UsageError, match=message):
    demo.main(['demo'])
  assert [p.name for p in tmp_path.iterdir()] == ['kept']


def test_a_stray_word_is_a_usage_error_without_a_traceback(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'launch.demo', f'--workdir={tmp_path}/run', 'stray'],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 1
  assert "Flags only, got ['stray']" in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr
  assert not list(tmp_path.iterdir())
