"""The demo's command line: wrong flags are refused before any work."""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _demo(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'launch.demo', *arguments],
    cwd=_ROOT, capture_output=True, text=True, timeout=300, check=False,
  )


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--config=full'], "Configurations of digits are '' and 'smoke', got 'full'"),
    (['--models=cnn,mlp'], "got ['cnn', 'mlp']"),
    (['--seed=-1'], 'seed'),
    (['--sede=1'], "Unknown command line flag 'sede'"),
    (['--workdir={full}'], 'holds files already'),
    (['stray'], "Flags only, got ['stray']"),
  ],
  ids=lambda value: value[0] if isinstance(value, list) else '',
)
def test_bad_flags_are_refused_and_nothing_is_written(arguments, message, tmp_path):
  (tmp_path / 'kept').write_text('old')
  arguments = [argument.format(full=tmp_path) for argument in arguments]
  if not any('workdir' in argument for argument in arguments):
    arguments.append(f'--workdir={tmp_path}/run')
  done = _demo(*arguments)
  assert done.returncode != 0
  assert message in done.stderr + done.stdout
  assert 'Traceback' not in done.stderr
  assert [p.name for p in tmp_path.iterdir()] == ['kept']
