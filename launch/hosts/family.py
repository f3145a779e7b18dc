"""The processes of one host under a supervisor: started, watched, and ended without remainder."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from launch import exits
from launch.hosts import attempt
from launch.hosts import pulse
from launch.hosts import verdict

_LOOK_SECONDS = 0.2
_STACKS_SECONDS = 2.0
_AWAY_SECONDS = 2.0


class Member(NamedTuple):
  """A process started here.

  Attributes:
    process: its handle.
    rank: its number in the run; None where it finds out itself.
  """

  process: subprocess.Popen
  rank: int | None


class Asked:
  """Handler of SIGTERM and SIGINT that notes the first one.

  Attributes:
    at: when it came, on the monotonic clock; None before.
  """

  def __init__(self):
    self.at = None
    self._event = threading.Event()

  def __call__(self, *_) -> None:
    self.at = self.at or time.monotonic()
    self._event.set()

  def wait(self, seconds: float) -> bool:
    """Waits so long or until asked; returns whether it was asked."""
    return self._event.wait(seconds)


def free_port() -> int:
  """Returns a TCP port of this machine that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def start(
  commands: Sequence[Sequence[str]], *, first: int | None, attempt: int, beat: float
) -> list[Member]:
  """Starts one process a command line, each the leader of a group of its own.

  Args:
    commands: argument lists.
    first: rank of the first of them; None when they find out themselves.
    attempt: number of the attempt.
    beat: seconds between their beats.
  """
  told = {
    pulse.SUPERVISOR: str(os.getpid()),
    pulse.ATTEMPT: str(attempt),
    pulse.BEAT_SECONDS: str(beat),
  }
  members = []
  for i, command in enumerate(commands):
    process = subprocess.Popen(
      command, env={**os.environ, **told}, stdin=subprocess.DEVNULL, start_new_session=True
    )
    members.append(Member(process, None if first is None else first + i))
  return members


def watch(
  members: Sequence[Member],
  folder: pathlib.Path,
  total: int | None,
  limits: verdict.Limits,
  asked: Asked,
  grace: float,
) -> int | verdict.Fault:
  """Watches until the processes of this host are done, or something is wrong anywhere.

  Args:
    members: processes of this host.
    folder: of the attempt.
    total: processes of the run; None when the members' beats say it.
    limits: seconds allowed.
    asked: SIGTERM is handed on to the members.
    grace: seconds they have to save then.

  Returns:
    The exit code, DONE or PREEMPTED; or the fault, which is for the caller to record.
  """
  sights, bad_since, told = {}, None, False
  began = looked = time.monotonic()
  beats_at = 0.0
  while True:
    now = time.monotonic()
    away = now - looked - _LOOK_SECONDS
    if away > _AWAY_SECONDS:  # this process itself was stopped: nobody else is to blame
      sights = {rank: verdict.shift(s, away) for rank, s in sights.items()}
      began += away
    looked = now
    if asked.at and not told:
      told = True
      for member in members:
        _signal(member, signal.SIGTERM)
    if now - beats_at >= limits.beat / 2:
      beats_at = now
      members, total = _recognize(members, folder, total)
      for rank in range(total or 0):
        beat = pulse.read(pulse.pulse_file(folder, rank))
        sights[rank] = verdict.look(sights.get(rank), beat, now)
    codes = {m.rank if m.rank is not None else -1: m.process.poll() for m in members}
    ended = {rank: code for rank, code in codes.items() if code is not None}
    bad = {rank: code for rank, code in ended.items() if verdict.weight(code)}
    if len(ended) == len(codes) and not bad:
      return max(ended.values())
    if end := attempt.read_end(folder):
      return end.fault
    if bad:
      bad_since = bad_since or now
      settled = now - bad_since > 3 * limits.beat + 1 or len(ended) == (total or 1)
      if settled or max(map(verdict.weight, bad.values())) == 3:
        return verdict.of_exits(bad, sights, now, limits)
    elif fault := (
      verdict.judge(sights, now, limits)
      or _lingers(codes, sights, now, limits)
      or _faceless(codes, now - began, limits)
      or _too_slow(asked, now, grace)
    ):
      return fault
    asked.wait(_LOOK_SECONDS) if not asked.at else time.sleep(_LOOK_SECONDS)


def end(members: Sequence[Member], folder: pathlib.Path) -> None:
  """Ends the processes and whatever they started; their stacks are dumped first.

  Args:
    members: processes of this host, running or not.
    folder: of the attempt.
  """
  running = [m for m in members if m.process.poll() is None]
  for member in running:
    _signal(member, signal.SIGUSR1)
    _signal(member, signal.SIGCONT)  # a stopped process dumps when it goes on
  until = time.monotonic() + _STACKS_SECONDS
  before = None
  while running and time.monotonic() < until:
    time.sleep(_LOOK_SECONDS)
    sizes = [s.stat().st_size for s in sorted(folder.glob('*.stacks'))]
    if sizes == before and len([s for s in sizes if s]) >= len(running):
      break
    before = sizes
  for member in members:
    # The group too: helpers of a process that is gone already would hold its devices.
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(member.process.pid, signal.SIGKILL)
    _signal(member, signal.SIGKILL)
    member.process.wait()


def _recognize(members, folder, total):
  """Fills in ranks and total from the beats, where the processes found out themselves."""
  if all(m.rank is not None for m in members) and total is not None:
    return members, total
  beats = [b for b in map(pulse.read, folder.glob('rank-*.json')) if b is not None]
  here = {(b.host, b.pid): b for b in beats}
  found = []
  for member in members:
    beat = here.get((socket.gethostname(), member.process.pid))
    total = beat.count if beat else total
    found.append(member._replace(rank=beat.rank) if beat else member)
  return found, total


def _lingers(codes, sights, now, limits):
  """A process that said it is done and does not go."""
  for rank, code in codes.items():
    sight = sights.get(rank)
    if code is None and sight and sight.seen and sight.beat.closed:
      idle = now - sight.alive
      if idle > limits.slow:
        reason = f'rank {rank} is done but did not go for {idle:.0f} s'
        return verdict.Fault(exits.STUCK, rank, reason, sight.beat.step)
  return None


def _faceless(codes, seconds, limits):
  """A process that never said who it is."""
  if -1 in codes and codes[-1] is None and seconds > limits.slow:
    reason = f'the process of this host gave no sign of life within {limits.slow:g} s'
    return verdict.Fault(exits.PEER_LOST, None, reason, None)
  return None


def _too_slow(asked, now, grace):
  if asked.at and now - asked.at > grace:
    return verdict.Fault(exits.STUCK, None, f'not saved within {grace:g} s of SIGTERM', None)
  return None


def _signal(member, number):
  if member.process.poll() is None:
    member.process.send_signal(number)
