"""Signs of life: written, read, and worth nothing when damaged."""

import faulthandler
import os
import pathlib
import signal

import pytest

from launch import exits
from launch.hosts import attempt
from launch.hosts import pulse
from launch.hosts import verdict
from tests.launch import processes


def _read(folder):
  return pulse.read(pulse.pulse_file(folder, 3))


def test_it_beats_says_where_it_is_and_closes(tmp_path, monkeypatch):
  monkeypatch.setenv(pulse.BEAT_SECONDS, '0.01')
  with pulse.Pulse(tmp_path, 3, count=4) as beat:
    first = _read(tmp_path)
    assert (first.rank, first.count, first.pid) == (3, 4, os.getpid())
    assert (first.step, first.phase, first.moves) == (0, 'start', 0)
    beat.at(7, 'compile')
    later = processes.until(lambda: (b := _read(tmp_path)).moves and b)
    assert (later.step, later.phase, later.moves) == (7, 'compile', 1)
    assert later.beat > first.beat
    processes.until(lambda: _read(tmp_path).beat > later.beat)
  assert _read(tmp_path).closed


def test_an_error_leaves_it_open(tmp_path):
  beat = pulse.Pulse(tmp_path, 3)
  try:
    beat.__exit__(ValueError, None, None)
    assert not _read(tmp_path).closed
  finally:
    beat.close()


def test_sigusr1_dumps_the_stacks_of_all_threads(tmp_path):
  with pulse.Pulse(tmp_path, 3):
    os.kill(os.getpid(), signal.SIGUSR1)
    stacks = pulse.stacks_file(tmp_path, 3)
    text = processes.until(lambda: stacks.read_text())
  assert 'pulse_test.py' in text
  assert '_run' in text
  assert not faulthandler.unregister(signal.SIGUSR1)  # close took it back


def test_an_attempt_has_a_folder_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setenv(pulse.ATTEMPT, '2')
  with pulse.Pulse(tmp_path, 3):
    assert _read(tmp_path / 'attempt-2')


def test_without_a_directory_it_does_nothing(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pulse.Pulse(None, 0) as beat:
    beat.at(1, 'step')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'text',
  [
    '',
    '{',
    '[]',
    '{"rank": 0}',
    'null',
    '\x00' * 512,
    '{"rank": "0", "count": 1, "host": "h", "pid": 1, "beat": 1, "step": 1, "phase": "step", '
    '"moves": 1, "closed": false}',
    '{"rank": 0, "count": 1, "host": "h", "pid": 1, "beat": 1, "step": 1, "phase": "lunch", '
    '"moves": 1, "closed": false}',
  ],
)
def test_what_is_no_beat_is_none(text, tmp_path):
  path = tmp_path / 'rank-0.json'
  path.write_text(text)
  assert pulse.read(path) is None
  assert pulse.read(tmp_path / 'missing') is None


def _fault(rank=1):
  return verdict.Fault(exits.PEER_LOST, rank, 'rank 1 ended', 5)


def test_attempts_are_joined_while_open_and_end_once(tmp_path):
  hosts = tmp_path / 'hosts'
  assert attempt.join(hosts, 0, alone=False) == 1
  assert attempt.join(hosts, 0, alone=False) == 1  # the supervisor of another host
  folder = pulse.attempt_folder(hosts, 1)
  assert attempt.read_end(folder) is None
  end = attempt.End(_fault(), False)
  assert attempt.conclude(folder, end) == (end, True)
  assert attempt.conclude(folder, attempt.End(_fault(0), True)) == (end, False)
  assert attempt.join(hosts, 1, alone=False) == 2
  assert attempt.join(hosts, 0, alone=False) == 2
  assert attempt.join(hosts, 0, alone=True) == 3


def test_old_attempts_go(tmp_path):
  for number in range(20):
    assert attempt.join(tmp_path, number, alone=True) == number + 1
  assert len(list(tmp_path.iterdir())) < 12
  assert pulse.attempt_folder(tmp_path, 20).is_dir()


@pytest.mark.parametrize('text', ['', '{"code": 43', '[]', '{"code": 43}'])
def test_half_an_end_is_none(text, tmp_path):
  (tmp_path / 'end.json').write_text(text)
  assert attempt.read_end(tmp_path) is None


def test_only_a_checkpoint_with_its_manifest_counts(tmp_path):
  assert attempt.committed(tmp_path) == -1
  for name, whole in (('5', True), ('20', True), ('30', False), ('40.damaged', True)):
    folder = pathlib.Path(tmp_path, 'checkpoints', name)
    folder.mkdir(parents=True)
    if whole:
      (folder / 'manifest.json').touch()
  assert attempt.committed(tmp_path) == 20
