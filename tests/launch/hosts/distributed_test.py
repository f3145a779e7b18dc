"""Joining a pod, or saying why not; SIGTERM in one process."""

import os
import signal
import socket

import jax
import pytest

from launch import exits
from launch.hosts import distributed
from launch.hosts import preemption
from launch.hosts import surroundings
from tests.launch import processes

_STEP = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '2'}


@pytest.mark.parametrize(
  'environ, sign',
  [
    ({}, ''),
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4', 'SLURM_PROCID': '0'}, ''),  # sbatch without srun
    ({**_STEP, 'SLURM_NTASKS': '1'}, ''),  # what submitit starts
    (_STEP, 'a Slurm step of 2 tasks'),
    ({'TPU_WORKER_HOSTNAMES': 'localhost', 'TPU_WORKER_ID': '0'}, ''),
    ({'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}, 'a TPU slice of 4 hosts'),
    ({'TPU_PROCESS_ADDRESSES': 'a:1,b:1'}, 'a TPU slice of 2 hosts'),
    ({'MEGASCALE_COORDINATOR_ADDRESS': 'a'}, 'a TPU multislice'),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, ''),
    ({'OMPI_COMM_WORLD_SIZE': '8'}, 'an Open MPI job of 8 processes'),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, 'JAX_COORDINATOR_ADDRESS'),
  ],
)
def test_only_what_indicates_several_processes_counts(environ, sign):
  assert surroundings.signs_of_a_pod(environ) == sign


@pytest.fixture
def bare(monkeypatch):
  for name in set(os.environ) - set(processes.clean(os.environ)):
    monkeypatch.delenv(name)


@pytest.mark.parametrize(
  'given, says',
  [
    ({'mode': 'maybe'}, "one of auto, on, off, got 'maybe'"),
    ({'mode': 'off', 'coordinator': 'h:1'}, 'off never joins, but --coordinator is given'),
    ({'mode': 'on'}, '--distributed=on found no pod to join'),
    ({'mode': 'on', 'coordinator': 'h'}, "--coordinator is host:port, got 'h'"),
    ({'mode': 'on', 'coordinator': 'h:1', 'process_count': 2}, 'found no pod to join'),
    ({'mode': 'auto', 'process_count': 2}, '--distributed=auto with --process_count found no pod'),
    ({'mode': 'on', 'process_count': 0}, '--process_count is at least 1'),
    ({'mode': 'on', 'process_count': 2, 'process_id': 2}, 'got 2 of 2'),
  ],
)
@pytest.mark.usefixtures('bare')
def test_a_pod_that_cannot_be_is_a_sentence(given, says, monkeypatch):
  # The suite has used JAX already; the refusals come before that matters.
  monkeypatch.setattr(jax.distributed, 'initialize', _initialize)
  with pytest.raises(ValueError, match=says):
    distributed.start(**given)


def _initialize(coordinator, count, rank, **_):
  """As JAX refuses what it cannot find; the real one is met in the tests below."""
  raise ValueError('coordinator_address should be defined.')


@pytest.mark.usefixtures('bare')
def test_one_host_joins_nothing():
  distributed.start('auto')
  distributed.start('off')
  assert not jax.distributed.is_initialized()
  distributed.finish()


def _start(tmp_path, name, *flags, **environ):
  return processes.Started('tests.launch.joins', *flags, log=tmp_path / name, **environ)


def _pod(tmp_path, port, rank, *flags):
  at = (f'--coordinator=127.0.0.1:{port}', '--process_count=2', f'--process_id={rank}')
  return _start(tmp_path, f'log{rank}', '--mode=on', *at, *flags)


@pytest.mark.parametrize('rank, says', [(0, 'every other process was'), (1, 'process 0 is there')])
def test_a_peer_that_never_comes_is_a_sentence_and_a_code(rank, says, tmp_path):
  alone = _pod(tmp_path, processes.free_port(), rank, '--start_seconds=2')
  with processes.ended(alone):
    assert alone.code(60) == exits.PEER_LOST, alone.text
  assert 'not all processes of the run came together' in alone.text
  assert says in alone.text


def test_a_taken_port_is_a_sentence(tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as taken:
    alone = _pod(tmp_path, taken.getsockname()[1], 0, '--start_seconds=20')
    with processes.ended(alone):
      assert alone.code(60) == exits.PEER_LOST, alone.text
  assert 'Address already in use' in alone.text


def test_a_slurm_step_is_never_n_single_hosts(tmp_path):
  at = {
    **_STEP,
    'SLURM_PROCID': '1',
    'SLURM_LOCALID': '0',
    'JAX_COORDINATOR_ADDRESS': '127.0.0.1:1',
  }
  task = _start(tmp_path, 'log', '--mode=auto', '--start_seconds=2', **at)
  with processes.ended(task):
    assert task.code(60) == exits.PEER_LOST, task.text


def test_jax_itself_refuses_where_there_is_no_pod(tmp_path):
  alone = _start(tmp_path, 'log', '--mode=on')
  with processes.ended(alone):
    assert alone.code(60) == exits.BAD_INPUT, alone.text
  assert 'found no pod to join' in alone.text


@pytest.mark.parametrize('told', [(0,), (0, 1)])
def test_sigterm_to_any_process_reaches_all_at_one_step(told, tmp_path):
  port = processes.free_port()
  pod = [_pod(tmp_path, port, rank) for rank in (0, 1)]
  with processes.ended(*pod):
    for one in pod:
      processes.until(lambda one=one: 'step 5\n' in one.text, of=one)
    for rank in told:
      pod[rank].process.send_signal(signal.SIGTERM)
    assert [one.code(30) for one in pod] == [exits.PREEMPTED] * 2, pod[0].text + pod[1].text
  stopped = {line for one in pod for line in one.text.splitlines() if 'stopped' in line}
  assert len(stopped) == 1, stopped


@pytest.mark.parametrize(
  'text, is_loss',
  [
    ('INTERNAL: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [::1]:1', True),
    ('UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1', True),
    ('DEADLINE_EXCEEDED: Barrier timed out. Id: [Checkpoint:save]::10', True),
    ('RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.', False),
    ('INVALID_ARGUMENT: Argument does not match host shape', False),
  ],
)
def test_an_error_of_a_lost_peer_is_told_from_others(text, is_loss, monkeypatch):
  error = jax.errors.JaxRuntimeError(text)
  assert not distributed.is_peer_loss(error)  # alone in the run there is no peer
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  assert distributed.is_peer_loss(error) == is_loss
  assert distributed.is_peer_loss(ValueError(text)) == is_loss  # some statuses arrive as such
  assert not distributed.is_peer_loss(ValueError('The peer of this barrier is unavailable.'))
  wrapped = RuntimeError('not saved')
  wrapped.__cause__ = error
  assert distributed.is_peer_loss(wrapped) == is_loss


def test_sigterm_to_one_process_is_seen_at_the_next_step():
  before = signal.getsignal(signal.SIGTERM)
  with preemption.Watch() as watch:
    assert not watch.reached(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert watch.reached(2)
    assert watch.reached(3)
  assert signal.getsignal(signal.SIGTERM) == before


def test_after_the_last_step_sigterm_acts_at_once_also_one_that_came_before():
  for before in (True, False):
    acts = []
    with preemption.Watch() as watch:
      if before:
        os.kill(os.getpid(), signal.SIGTERM)
      watch.at_once(lambda: acts.append('left'))
      if not before:
        assert not acts
        os.kill(os.getpid(), signal.SIGTERM)
      assert acts == ['left']
