"""Sweeps end to end on runs that train nothing: isolation, retries, kills, resumes, the report."""

import csv
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from launch.sweeps import conductor
from launch.sweeps import keeper

# A keeper forks in a process of its own, where there is no jax to warn of it; here there may be.
pytestmark = pytest.mark.filterwarnings('ignore:os.fork:RuntimeWarning')
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TWELVE = (
  "transform=['identity()', 'nm(2, 4)', 'rigl(0.9)'] * seed=[0, 1, 2]"
  " + transform=['nm(2, 4)'] * seed=[100, 101, 102]"
)

_DAMAGES = (
  '{"status": "finis',
  '[]',
  '{"status": "finished"}',
  '{"status": "finished", "record": {"model": "vision"}}',
  '{"status": "finished", "record": {"model": "m", "label": "l", "transform": "t", "seed": "0"}}',
)


def _settings(workdir, grid, **more):
  return conductor.Settings(
    **{
      'experiment': 'vision',
      'size': 'smoke',
      'grid': grid,
      'workdir': str(workdir),
      'workers': 3,
      'point_minutes': 0.05,
      'program': 'tests.launch.small_run',
      'grace_seconds': 0.5,
      **more,
    }
  )


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(_ROOT)


def _starts(workdir):
  return {path.parent.name: len(path.read_text()) for path in workdir.glob('runs/*/starts')}


def _rows(workdir):
  with open(workdir / 'results.csv', newline='') as file:
    return {row['name']: row for row in csv.DictReader(file)}


def test_twelve_points_of_which_three_fail(tmp_path, capsys):
  assert conductor.conduct(_settings(tmp_path / 's', _TWELVE)) == 1
  rows = _rows(tmp_path / 's')
  failed = {row['seed']: row for row in rows.values() if row['status'] == 'failed'}
  assert len(rows) == 12 and sorted(failed) == ['100', '101', '102']
  assert sum(row['status'] == 'finished' for row in rows.values()) == 9
  assert 'RuntimeError: the crash of this test' in failed['100']['reason']
  assert (failed['100']['code'], failed['100']['attempts']) == ('1', '2')
  assert (
    failed['101']['reason'].startswith('took longer than 3 s') and failed['101']['code'] == '-9'
  )
  assert (failed['102']['reason'], failed['102']['attempts']) == ('Step 3: loss is nan.', '1')
  page = (tmp_path / 's' / 'report.html').read_text()
  assert '3 of 12 runs did not finish' in page and 'the crash of this test' in page
  said = capsys.readouterr().out
  assert '9 of 12 points finished' in said and 'Step 3: loss is nan.' in said

  # Again: what finished is not run again, what failed is.
  assert conductor.conduct(_settings(tmp_path / 's', _TWELVE, engine='none')) == 1
  before = _starts(tmp_path / 's')
  assert conductor.conduct(_settings(tmp_path / 's', _TWELVE, retries=0)) == 1
  after = _starts(tmp_path / 's')
  grown = {rows[name]['seed'] for name in after if after[name] != before[name]}
  assert grown == {'100', '101', '102'}


def test_every_way_to_end(tmp_path):
  grid = 'seed=[103, 104, 105, 106, 107, 108]'
  assert conductor.conduct(_settings(tmp_path, grid)) == 1
  rows = {row['seed']: row for row in _rows(tmp_path).values()}
  started = {rows[s]['name']: s for s in rows}
  starts = {started[name]: count for name, count in _starts(tmp_path).items()}
  assert rows['103']['status'] == 'finished' and starts['103'] == 2  # a retry helped
  assert rows['104']['code'] == '2' and starts['104'] == 1  # bad input stays bad
  assert rows['105']['status'] == 'finished' and starts['105'] == 2  # 42 is no failure
  assert 'no intact result.json' in rows['106']['reason'] and starts['106'] == 2
  assert 'killed by SIGSEGV' in rows['107']['reason']
  assert rows['108']['status'] == 'finished'
  for log in tmp_path.glob('logs/*108*'):
    assert log.exists()


def test_preemptions_are_bounded_and_do_not_cost_tries(tmp_path, monkeypatch):
  monkeypatch.setattr(keeper, '_REQUEUES', 2)
  script = f'import pathlib, sys; p = pathlib.Path({str(tmp_path)!r}, "n"); '
  script += 'p.write_text(p.read_text() + "x" if p.exists() else "x"); sys.exit(42)'
  outcome = keeper.keep(_job(tmp_path, [sys.executable, '-c', script]))
  assert outcome['status'] == 'failed' and outcome['code'] == 42
  assert (tmp_path / 'n').read_text() == 'xxx'


def _job(folder, command, **more):
  paths = {name: str(folder / name) for name in ('run', 'log', 'state', 'lock', 'stop')}
  (folder / 'run').mkdir(exist_ok=True)
  job = keeper.Job(
    name='a', command=command, seconds=20, grace=0.5, retries=0, environment={}, **paths
  )
  return job._replace(**more)


def test_a_grandchild_does_not_outlive_its_run(tmp_path):
  script = 'import os, time; p = os.fork(); print(p, flush=True); time.sleep(0 if p else 600)'
  keeper.keep(_job(tmp_path, [sys.executable, '-c', script]))
  child = int(re.search(r'^[1-9]\d+$', (tmp_path / 'log').read_text(), re.MULTILINE)[0])
  for _ in range(50):
    if not _alive(child):
      return
    time.sleep(0.1)
  pytest.fail('it lives')


def _alive(pid):
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
  except OSError:
    return False
  return state != 'Z'


def test_a_point_is_kept_once(tmp_path, monkeypatch):
  monkeypatch.setattr(keeper, '_LOCK_SECONDS', 0.3)
  job = _job(tmp_path, [sys.executable, '-c', 'pass'])
  with keeper._locked(job.lock) as lock:
    assert lock is not None
    assert 'another process of this point' in keeper.keep(job)['reason']


def test_a_damaged_result_is_kept_aside_and_run_again(tmp_path):
  settings = _settings(tmp_path, 'seed=[0, 1]')
  assert conductor.conduct(settings) == 0
  (first,) = tmp_path.glob('runs/*seed-0*')
  for number, damage in enumerate(_DAMAGES):
    (first / 'result.json').write_text(damage)
    assert conductor.conduct(settings) == 0
    assert len((first / 'starts').read_text()) == 2 + number
  assert len(list(first.glob('result.json.damaged-*'))) == len(_DAMAGES)
  assert set(_starts(tmp_path).values()) == {1 + len(_DAMAGES), 1}


def test_a_grid_may_add_points_but_not_drop_any(tmp_path):
  assert conductor.conduct(_settings(tmp_path, 'seed=[0]')) == 0
  assert conductor.conduct(_settings(tmp_path, 'seed=[1, 0]')) == 0
  assert set(_starts(tmp_path).values()) == {1} and len(_starts(tmp_path)) == 2
  with pytest.raises(ValueError, match='2 of its points are not in this grid'):
    conductor.conduct(_settings(tmp_path, 'seed=[2]'))
  with pytest.raises(ValueError, match='not in this grid'):
    conductor.conduct(_settings(tmp_path, 'seed=[0, 1]', fields='steps=7'))
  plan = json.loads((tmp_path / 'sweep.json').read_text())
  assert plan['grid'] == 'seed=[1, 0]' and len(plan['points']) == 2
  (tmp_path / 'sweep.json').write_text('{"points": 3}')
  with pytest.raises(ValueError, match=r'sweep\.json is damaged'):
    conductor.conduct(_settings(tmp_path, 'seed=[0]'))


def test_a_directory_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('old')
  with pytest.raises(ValueError, match='holds files of something else: thesis'):
    conductor.conduct(_settings(tmp_path, 'seed=[0]'))
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def _start(workdir, grid, *more):
  command = [sys.executable, '-m', 'tests.launch.small_sweep', '--experiment=vision', '--workers=2']
  return subprocess.Popen(
    [*command, f'--grid={grid}', f'--workdir={workdir}', *more],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _until(condition, seconds=60):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, 'waited in vain'
    time.sleep(0.05)


def _processes(workdir):
  """Processes of a sweep's runs, found by their command lines."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      words = path.read_bytes()
    except OSError:
      continue
    if f'--workdir={workdir}/runs/'.encode() in words and _alive(int(path.parent.name)):
      found.append(int(path.parent.name))
  return found


def test_kill_9_leaves_nobody_and_a_restart_repeats_nothing(tmp_path):
  grid, steps = 'seed=[0, 1, 2, 3]', '--set=steps=100'
  conductor.checked(_settings(tmp_path, grid))  # imports what takes seconds before the race
  sweep = _start(tmp_path, grid, steps)
  try:
    _until(lambda: len(list(tmp_path.glob('runs/*/result.json'))) >= 2)
    _until(lambda: len(_processes(tmp_path)) == 2)
    listening = _listening(sweep.pid)
    # The engine's sockets unpickle what arrives: this machine alone may reach them.
    assert listening and set(listening) == {'0100007F'}
    with pytest.raises(ValueError, match='another sweep is at work'):
      conductor.conduct(_settings(tmp_path, grid))
  finally:
    sweep.kill()
    sweep.communicate()
  _until(lambda: not _processes(tmp_path), seconds=5)
  finished = {path.parent.name for path in tmp_path.glob('runs/*/result.json')}
  assert len(finished) == 2
  before = _starts(tmp_path)
  sweep = _start(tmp_path, grid, steps)
  said = sweep.communicate(timeout=120)[0]
  assert sweep.returncode == 0 and '2 of 4 points are finished already' in said
  for name, count in _starts(tmp_path).items():
    assert count == before.get(name, 0) + (name not in finished)


def _listening(pid):
  """Addresses, in hexadecimal, that a process listens on."""
  inodes = set()
  for link in pathlib.Path(f'/proc/{pid}/fd').iterdir():
    try:
      inodes.update(re.findall(r'socket:\[(\d+)\]', os.readlink(link)))
    except OSError:
      continue
  lines = pathlib.Path('/proc/net/tcp').read_text().splitlines()[1:]
  lines = [line.split() for line in lines]
  return [w[1].partition(':')[0] for w in lines if w[3] == '0A' and w[9] in inodes]


def test_sigterm_lets_runs_save_and_says_so(tmp_path):
  sweep = _start(tmp_path, 'seed=[0, 1, 2]', '--set=steps=400')
  _until(lambda: len(_processes(tmp_path)) == 2)
  sweep.send_signal(signal.SIGTERM)
  said = sweep.communicate(timeout=60)[0]
  assert sweep.returncode == 42 and 'the same command goes on from here' in said
  assert not _processes(tmp_path)
  states = [json.loads(p.read_text())['status'] for p in tmp_path.glob('state/*.json')]
  assert states == ['stopped', 'stopped'] and len(_starts(tmp_path)) == 2


def test_the_command_line_refuses_in_one_sentence(tmp_path):
  cases = [
    ((), 0, 'identity()'),
    (('--grid=seed=[]',), 2, '--grid, column 6'),
    (('--nope=1',), 2, "Unknown command line flag 'nope'"),
  ]
  for more, code, message in cases:
    sweep = _start(tmp_path / 'new', 'seed=[0, 1]', '--dry_run', *more)
    said = sweep.communicate(timeout=60)[0]
    assert sweep.returncode == code and message in said
    assert 'Traceback' not in said
  assert not list(tmp_path.iterdir())


def test_private_folders_are_private(tmp_path):
  conductor.conduct(_settings(tmp_path, 'seed=[0]'))
  assert stat.S_IMODE((tmp_path / 'cache').stat().st_mode) == 0o700


@pytest.mark.slow
def test_the_real_run_on_vision(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_ENABLE_COMPILATION_CACHE')
  grid = "transform=['identity()', 'nm(2, 4)'] * seed=[0, 1]"
  more = {'program': 'launch.run', 'fields': 'steps=20', 'workers': 2, 'point_minutes': 10.0}
  assert conductor.conduct(_settings(tmp_path, grid, **more)) == 0
  rows = _rows(tmp_path)
  assert len(rows) == 4 and all(float(row['accuracy']) > 0.1 for row in rows.values())
  page = (tmp_path / 'report.html').read_text()
  assert 'Learning curves' in page and '2 of 2' in page and 'class="curve c1"' in page
  assert list((tmp_path / 'cache').iterdir())
