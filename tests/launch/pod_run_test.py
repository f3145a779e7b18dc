"""Whole runs on two processes of four devices: lost peers, stuck peers, SIGTERM, other meshes."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from launch import exits
from launch.hosts import pulse
from tests.launch import processes

pytestmark = pytest.mark.slow

_STEPS = 60
_LIMIT = 10
_RUN = (
  '--experiment=vision',
  '--size=smoke',
  f'--set=steps={_STEPS}, batch_size=32',
  '--transform=rigl(0.8, every=10, end=50)',
  '--checkpoint_every=10',
  '--log_every=1',
  '--notensorboard',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the runs of this module lie; they share a compilation cache, being the same programs."""
  return tmp_path_factory.mktemp('pods')


def _environ(folder, devices):
  return {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def _supervisor(workdir, local, devices, **given):
  flags = {'workdir': workdir, 'local': local, 'limit': _LIMIT, 'grace': 60, **given}
  sleeps = {'SLEEPS': flags.pop('sleeps')} if 'sleeps' in flags else {}
  words = [f'--{key}={value}' for key, value in flags.items()]
  return processes.Started(
    'launch.supervise',
    *words,
    '--',
    *_RUN,
    log=f'{workdir}.log',
    **_environ(workdir.parent, devices),
    **sleeps,
  )


def _finished(workdir, local, devices):
  supervisor = _supervisor(workdir, local, devices)
  with processes.ended(supervisor):
    assert supervisor.code(600) == exits.DONE, supervisor.text
  return workdir


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _ledger(workdir, event):
  return [line for line in _lines(workdir / 'ledger.jsonl') if line['event'] == event]


def _digest(workdir):
  return json.loads((workdir / 'result.json').read_text())['digest']


def _beat(workdir, rank, attempt=1):
  return pulse.read(pulse.pulse_file(pulse.attempt_folder(workdir / 'hosts', attempt), rank))


def _reaches(supervisor, workdir, step, rank=0):
  return processes.until(
    lambda: (b := _beat(workdir, rank)) and b.step >= step and b, 600, of=supervisor
  )


@pytest.fixture(scope='module')
def whole(folder):
  """An uninterrupted run of two processes."""
  return _finished(folder / 'whole', 2, 4)


def test_two_processes_have_the_losses_of_one(whole, folder):
  alone = _finished(folder / 'alone', 1, 8)
  losses = [[line['loss'] for line in _lines(w / 'metrics.jsonl')] for w in (whole, alone)]
  assert len(losses[0]) == _STEPS
  np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP], ids=str)
@pytest.mark.parametrize('rank', [0, 1])
def test_a_lost_peer_is_ended_and_the_run_resumed_to_the_bit(rank, number, whole, folder):
  workdir = folder / f'lost-{rank}-{number.name}'
  supervisor = _supervisor(workdir, 2, 4)
  with processes.ended(supervisor):
    beat = _reaches(supervisor, workdir, 23, rank)
    began = time.monotonic()
    os.kill(beat.pid, number)
    pids = [_beat(workdir, r).pid for r in (0, 1)]
    processes.until(lambda: not any(map(processes.is_running, pids)), of=supervisor)
    print(f'rank {rank} {number.name}: ended after {time.monotonic() - began:.1f} s')
    assert time.monotonic() - began < _LIMIT + 15
    assert supervisor.code(600) == exits.DONE, supervisor.text
  (fault,) = _ledger(workdir, 'fault')
  assert (fault['code'], fault['lost_rank']) == (exits.PEER_LOST, rank), fault
  if number == signal.SIGSTOP:  # a killed rank has none, and the other may be gone before asked
    assert fault['stacks'] == ['hosts/attempt-1/rank-0.stacks', 'hosts/attempt-1/rank-1.stacks']
  assert _digest(workdir) == _digest(whole)
  assert (workdir / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()


@pytest.mark.parametrize('rank', [0, 1])
def test_a_peer_asleep_in_its_data_is_ended_with_its_stack(rank, whole, folder):
  workdir = folder / f'asleep-{rank}'
  supervisor = _supervisor(workdir, 2, 4, module='tests.launch.sleeper', sleeps=f'{rank}:25')
  with processes.ended(supervisor):
    beat = _reaches(supervisor, workdir, 25, rank)
    began = time.monotonic()
    processes.until(lambda: not processes.is_running(beat.pid), of=supervisor)
    print(f'rank {rank} asleep: ended after {time.monotonic() - began:.1f} s')
    assert time.monotonic() - began < _LIMIT + 15
    assert supervisor.code(600) == exits.DONE, supervisor.text
  (fault,) = _ledger(workdir, 'fault')
  assert (fault['code'], fault['lost_rank'], fault['step']) == (exits.STUCK, rank, 25), fault
  stack = (workdir / 'hosts' / 'attempt-1' / f'rank-{rank}.stacks').read_text()
  assert 'sleeper.py' in stack
  assert _digest(workdir) == _digest(whole)


@pytest.mark.parametrize('local, devices', [(1, 8), (4, 2)])
def test_a_lost_run_resumes_on_other_processes(local, devices, whole, folder):
  workdir = folder / f'moved-{local}'
  supervisor = _supervisor(workdir, 2, 4, restarts=0)
  with processes.ended(supervisor):
    os.kill(_reaches(supervisor, workdir, 33, 1).pid, signal.SIGKILL)
    assert supervisor.code(600) == exits.PEER_LOST, supervisor.text
  failure = json.loads((workdir / 'failure.json').read_text())
  assert failure['code'] == exits.PEER_LOST
  (fault,) = _ledger(workdir, 'fault')
  _finished(workdir, local, devices)
  assert [e['step'] for e in _ledger(workdir, 'restore')] == [fault['saved']]
  assert not _ledger(workdir, 'damaged')
  assert not (workdir / 'failure.json').exists()
  losses = [[line['loss'] for line in _lines(w / 'metrics.jsonl')] for w in (whole, workdir)]
  np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize('local, devices', [(1, 8), (4, 2)])
def test_the_state_is_the_same_on_other_processes(local, devices, whole, folder):
  workdir = shutil.copytree(whole, folder / f'copied-{local}')
  (workdir / 'result.json').unlink()
  _finished(workdir, local, devices)
  assert [e['step'] for e in _ledger(workdir, 'restore')] == [_STEPS]
  assert _digest(workdir) == _digest(whole)


@pytest.mark.parametrize('told', [(0,), (1,), (0, 1), 'supervisor'], ids=str)
def test_sigterm_saves_one_common_step(told, whole, folder):
  workdir = folder / f'preempted-{"".join(map(str, told))}'
  supervisor = _supervisor(workdir, 2, 4)
  with processes.ended(supervisor):
    _reaches(supervisor, workdir, 21, 1)
    began = time.monotonic()
    pids = [_beat(workdir, rank).pid for rank in (0, 1)]
    for pid in [supervisor.process.pid] if told == 'supervisor' else [pids[r] for r in told]:
      os.kill(pid, signal.SIGTERM)
    assert supervisor.code(60) == exits.PREEMPTED, supervisor.text
    print(f'SIGTERM to {told}: left after {time.monotonic() - began:.1f} s')
    assert time.monotonic() - began < 30
  (stop,) = _ledger(workdir, 'preempted')
  assert max(int(p.name) for p in (workdir / 'checkpoints').iterdir()) == stop['step']
  assert not _ledger(workdir, 'fault')
  _finished(workdir, 2, 4)
  assert _digest(workdir) == _digest(whole)


@pytest.mark.parametrize('during', [1, 21])
def test_sigterm_to_one_process_saves_the_step(during, folder):
  workdir = folder / f'single-{during}'
  run = processes.Started(
    'launch.run', f'--workdir={workdir}', *_RUN, log=f'{workdir}.log', **_environ(folder, 1)
  )
  with processes.ended(run):
    steps = lambda: len((workdir / 'metrics.jsonl').read_bytes().splitlines())
    path = workdir / ('checkpoints' if during == 1 else 'metrics.jsonl')
    processes.until(lambda: path.exists() and (during == 1 or steps() >= during), 600, of=run)
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.code(60) == exits.PREEMPTED, run.text
    assert time.monotonic() - began < 30
  (stop,) = _ledger(workdir, 'preempted')
  assert (workdir / 'checkpoints' / str(stop['step']) / 'manifest.json').exists()
