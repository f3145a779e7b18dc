"""The supervisor against ranks that die, fall silent, sleep or crash: a toy run without JAX."""

import json
import os
import signal
import time

import pytest

from launch import exits
from launch.hosts import pulse
from tests.launch import processes

_LIMIT = 3


def _supervisor(workdir, *run, local=2, name='log', environ=(), **given):
  flags = {'workdir': workdir, 'local': local, 'limit': _LIMIT, 'module': 'tests.launch.toy'}
  words = [f'--{key}={value}' for key, value in {**flags, **given}.items()]
  log = workdir.parent / f'{workdir.name}.{name}'
  return processes.Started('launch.supervise', *words, '--', *run, log=log, **dict(environ))


def _ledger(workdir):
  return [json.loads(line) for line in (workdir / 'ledger.jsonl').read_text().splitlines()]


def _beat(workdir, rank, attempt=1):
  return pulse.read(pulse.pulse_file(pulse.attempt_folder(workdir / 'hosts', attempt), rank))


def _pids(workdir):
  return [pulse.read(path).pid for path in workdir.glob('hosts/*/rank-*.json')]


@pytest.mark.parametrize(
  'fault, code, stacks',
  [
    ('kill:1:7', exits.PEER_LOST, 'rank-0'),
    ('kill:0:7', exits.PEER_LOST, 'rank-1'),
    ('stop:1:7', exits.PEER_LOST, 'rank-1'),
    ('stop:0:7', exits.PEER_LOST, 'rank-0'),
    ('sleep:1:7', exits.STUCK, 'rank-1'),
    ('sleep:0:7', exits.STUCK, 'rank-0'),
  ],
)
def test_a_lost_or_stuck_rank_is_ended_recorded_and_the_run_resumed(fault, code, stacks, tmp_path):
  workdir = tmp_path / 'run'
  began = time.monotonic()
  supervisor = _supervisor(workdir, f'--fault={fault}')
  with processes.ended(supervisor):
    assert supervisor.code() == exits.DONE, supervisor.text
  assert time.monotonic() - began < _LIMIT + 15 + 20  # the last for a busy machine to do the steps
  (event,) = _ledger(workdir)
  kind, rank, _ = fault.split(':')
  assert (event['event'], event['code'], event['lost_rank']) == ('fault', code, int(rank))
  assert event['attempt'] == 1
  assert event['saved'] >= 5
  dumped = workdir / 'hosts' / 'attempt-1' / f'{stacks}.stacks'
  assert str(dumped.relative_to(workdir)) in event['stacks']
  assert 'toy.py' in dumped.read_text()
  if kind == 'sleep':
    assert '_misbehave' in dumped.read_text()
  assert f'rank {rank} ' in supervisor.text
  assert (workdir / 'result.json').exists()
  assert not (workdir / 'failure.json').exists()
  assert not any(map(processes.is_running, _pids(workdir)))


@pytest.mark.parametrize('code', [exits.FAILED, exits.BAD_INPUT, exits.DIVERGED, exits.SAVE_FAILED])
def test_what_would_only_happen_again_is_not_started_again(code, tmp_path):
  supervisor = _supervisor(tmp_path / 'run', f'--fault=code{code}:0:2', local=1)
  with processes.ended(supervisor):
    assert supervisor.code() == code, supervisor.text
  (event,) = _ledger(tmp_path / 'run')
  assert (event['code'], event['lost_rank'], event['attempt']) == (code, 0, 1)
  assert 'not started again' in supervisor.text


def test_restarts_without_a_new_checkpoint_are_bounded(tmp_path):
  workdir = tmp_path / 'run'
  # Step 5 is saved in the first attempt, which counts as progress; the other two bring nothing.
  supervisor = _supervisor(workdir, '--fault=kill:0:7', '--always', local=1, restarts=2)
  with processes.ended(supervisor):
    assert supervisor.code() == exits.PEER_LOST, supervisor.text
  assert [e['attempt'] for e in _ledger(workdir)] == [1, 2, 3]
  failure = json.loads((workdir / 'failure.json').read_text())
  assert failure == {
    'status': 'failed',
    'code': exits.PEER_LOST,
    'reason': 'rank 0 ended: killed by SIGKILL',
    'step': failure['step'],
  }


def test_sigterm_is_handed_on_and_one_step_is_saved(tmp_path):
  workdir = tmp_path / 'run'
  supervisor = _supervisor(workdir, '--steps=100000')
  with processes.ended(supervisor):
    processes.until(lambda: (b := _beat(workdir, 1)) and b.step > 3, of=supervisor)
    began = time.monotonic()
    supervisor.process.send_signal(signal.SIGTERM)
    assert supervisor.code() == exits.PREEMPTED, supervisor.text
  assert time.monotonic() - began < 30
  assert {_beat(workdir, 0).closed, _beat(workdir, 1).closed} == {True}
  assert not (workdir / 'ledger.jsonl').exists()  # nothing went wrong


def test_who_does_not_stop_on_sigterm_is_ended(tmp_path):
  workdir = tmp_path / 'run'
  supervisor = _supervisor(workdir, '--fault=sleep:0:3', local=1, limit=60, grace=2)
  with processes.ended(supervisor):
    processes.until(lambda: (b := _beat(workdir, 0)) and b.step == 3, of=supervisor)
    supervisor.process.send_signal(signal.SIGTERM)
    assert supervisor.code() == exits.STUCK, supervisor.text
  assert 'not saved within 2 s of SIGTERM' in _ledger(workdir)[0]['reason']


def test_a_long_compilation_has_its_own_limit(tmp_path):
  supervisor = _supervisor(tmp_path / 'run', f'--compile={_LIMIT + 2}', '--steps=2')
  with processes.ended(supervisor):
    assert supervisor.code() == exits.DONE, supervisor.text


def test_without_their_supervisor_the_ranks_end_themselves(tmp_path):
  workdir = tmp_path / 'run'
  supervisor = _supervisor(workdir, '--steps=100000')
  with processes.ended(supervisor):
    processes.until(lambda: _beat(workdir, 0) and _beat(workdir, 1), of=supervisor)
    supervisor.process.kill()
    processes.until(lambda: not any(map(processes.is_running, _pids(workdir))), 60)


def _host(workdir, rank, *run, **given):
  port = {'coordinator': '127.0.0.1:1', 'processes': 2, 'first_process': rank}
  return _supervisor(workdir, *run, local=1, name=f'log{rank}', **port, **given)


@pytest.mark.parametrize('fault, code', [('kill:1:7', 43), ('stop:0:7', 43), ('sleep:1:7', 75)])
def test_supervisors_of_two_hosts_agree(fault, code, tmp_path):
  workdir = tmp_path / 'run'
  hosts = [_host(workdir, rank, f'--fault={fault}') for rank in (0, 1)]
  with processes.ended(*hosts):
    assert [h.code() for h in hosts] == [0, 0], hosts[0].text + hosts[1].text
  (event,) = _ledger(workdir)
  assert (event['code'], event['lost_rank']) == (code, int(fault.split(':')[1]))
  assert sorted(p.name for p in (workdir / 'hosts').iterdir()) == ['attempt-1', 'attempt-2']


def test_in_a_slurm_step_the_ranks_say_who_they_are(tmp_path):
  workdir = tmp_path / 'run'
  step = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '2'}
  hosts = [
    _supervisor(
      workdir,
      '--fault=sleep:1:7',
      local=1,
      name=f'log{rank}',
      environ={**step, 'SLURM_PROCID': str(rank), 'SLURM_LOCALID': '0'},
    )
    for rank in (0, 1)
  ]
  with processes.ended(*hosts):
    assert [h.code() for h in hosts] == [0, 0], hosts[0].text + hosts[1].text
  (event,) = _ledger(workdir)
  assert (event['code'], event['lost_rank']) == (exits.STUCK, 1)


def test_a_host_that_is_gone_with_its_supervisor_is_the_lost_rank(tmp_path):
  workdir = tmp_path / 'run'
  hosts = [_host(workdir, rank, '--steps=100000', restarts=0) for rank in (0, 1)]
  with processes.ended(*hosts):
    processes.until(lambda: (b := _beat(workdir, 0)) and b.step > 3, of=hosts[0])
    hosts[1].process.kill()
    os.kill(_beat(workdir, 1).pid, signal.SIGKILL)
    began = time.monotonic()
    assert hosts[0].code() == exits.PEER_LOST, hosts[0].text
  assert time.monotonic() - began < _LIMIT + 15
  (event,) = _ledger(workdir)
  assert (event['lost_rank'], event['code']) == (1, exits.PEER_LOST)
  assert json.loads((workdir / 'failure.json').read_text())['code'] == exits.PEER_LOST


def test_hosts_started_again_after_everything_was_killed_meet_again(tmp_path):
  workdir = tmp_path / 'run'
  hosts = [_host(workdir, rank, '--steps=100000') for rank in (0, 1)]
  with processes.ended(*hosts):
    processes.until(lambda: (b := _beat(workdir, 0)) and b.step > 7, of=hosts[0])
    for host in hosts:
      host.process.kill()
    processes.until(lambda: not any(map(processes.is_running, _pids(workdir))), 60)
  hosts = [_host(workdir, rank, '--steps=12') for rank in (0, 1)]
  with processes.ended(*hosts):
    assert [h.code() for h in hosts] == [0, 0], hosts[0].text + hosts[1].text


@pytest.mark.parametrize(
  'given, run, says',
  [
    ({}, ['--workdir=/tmp'], '--workdir is for the supervisor to say'),
    ({}, ['--process_id=1'], '--process_id is for the supervisor'),
    ({}, ['stray'], "only --name=value, got 'stray'"),
    ({'processes': 3}, [], '--coordinator=host:port is needed'),
    ({'first_process': 1, 'processes': 2}, [], 'pass --processes=2'),
    ({'limits': 3}, [], "Unknown command line flag 'limits'"),
    ({'local': 0}, [], 'local'),
  ],
)
def test_wrong_flags_are_a_sentence(given, run, says, tmp_path):
  supervisor = _supervisor(tmp_path / 'run', *run, **given)
  with processes.ended(supervisor):
    assert supervisor.code() == exits.BAD_INPUT, supervisor.text
  assert says in supervisor.text
  assert 'Traceback' not in supervisor.text
  assert not (tmp_path / 'run').exists()
