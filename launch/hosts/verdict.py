"""Who is to blame: from beats and exit codes to the rank that was lost. Pure, no clock of its own.

A rank is *lost* when its beat stops and *stuck* when it beats and its loop stands still. Ranks wait
for each other in collectives, so one stuck rank makes all stand still: the least far of them, by
step and phase, is the one the others wait for, and only its time counts.
"""

from collections.abc import Mapping
from typing import NamedTuple

from launch import exits
from launch.hosts import pulse

_SLOW = frozenset({'start', 'compile', 'save', 'evaluate', 'done'})
_SIGABRT, _SIGTERM = -6, -15
# What a rank that lost its peer ends with: as it should, in the runtime's own abort, or in a save
# or another call that failed for want of the peer.
_MAYBE_A_VICTIM = frozenset({exits.PEER_LOST, _SIGABRT, exits.FAILED, exits.SAVE_FAILED})


class Limits(NamedTuple):
  """Seconds a rank may take.

  Attributes:
    step: without a beat, or between two moves of the loop.
    slow: to appear, and between two moves in 'start', 'compile', 'save', 'evaluate' and 'done'.
    beat: between two beats of a healthy rank.
  """

  step: float
  slow: float
  beat: float


class Fault(NamedTuple):
  """What ended an attempt.

  Attributes:
    code: exit code of the run, see `exits`.
    rank: the lost rank, or None where it cannot be told.
    reason: a sentence without a full stop.
    step: how far it had come, or None.
  """

  code: int
  rank: int | None
  reason: str
  step: int | None


class Sight(NamedTuple):
  """A rank as seen from here, by this machine's clock alone.

  Attributes:
    beat: last beat read, or None.
    alive: when it last changed, or when watching began.
    moved: when its loop last moved.
    seen: whether it changed at all: what is left of a former attempt never does.
  """

  beat: pulse.Beat | None
  alive: float
  moved: float
  seen: bool


def look(sight: Sight | None, beat: pulse.Beat | None, now: float) -> Sight:
  """Returns what is known of a rank after another look at its pulse file."""
  if sight is None:
    return Sight(beat, now, now, False)
  old = sight.beat
  if beat is None or beat == old:
    return sight
  moved = old is None or (beat.pid, beat.host, beat.moves) != (old.pid, old.host, old.moves)
  return Sight(beat, now, now if moved else sight.moved, True)


def shift(sight: Sight, seconds: float) -> Sight:
  """Returns the sight as if these seconds had not been: the watcher itself was away."""
  return sight._replace(alive=sight.alive + seconds, moved=sight.moved + seconds)


def silent(sights: Mapping[int, Sight], now: float, seconds: float) -> list[int]:
  """Ranks that did beat and have not for so many seconds, the longest silent first."""
  quiet = [r for r, s in sights.items() if s.seen and not s.beat.closed and now - s.alive > seconds]
  return sorted(quiet, key=lambda rank: (sights[rank].alive, rank))


def judge(sights: Mapping[int, Sight], now: float, limits: Limits) -> Fault | None:
  """Returns what is wrong with the ranks watched, or None.

  Args:
    sights: rank -> what is known of it.
    now: seconds on the clock that the sights were made with.
    limits: seconds allowed.
  """
  for rank, sight in sorted(sights.items()):
    if not sight.seen and now - sight.alive > limits.slow:
      reason = f'rank {rank} gave no sign of life within {limits.slow:g} s of the start'
      return Fault(exits.PEER_LOST, rank, reason, None)
  for rank in silent(sights, now, limits.step):
    return Fault(exits.PEER_LOST, rank, _silence(rank, sights[rank], now), sights[rank].beat.step)
  going = {r: s for r, s in sights.items() if s.seen and not s.beat.closed}
  if len(going) < sum(not (s.seen and s.beat.closed) for s in sights.values()):
    return None  # one has yet to appear, and the others wait for it
  return _stuck(going, now, limits)


def _stuck(going, now, limits):
  if not going:
    return None
  place = lambda sight: (sight.beat.step, pulse.PHASES[sight.beat.phase])
  least = min(place(s) for s in going.values())
  behind = {rank: s for rank, s in going.items() if place(s) == least}
  # Where several are at the same place, the last to come there has only begun to wait.
  rank, sight = max(behind.items(), key=lambda item: item[1].moved)
  idle = now - sight.moved
  if idle <= (limits.slow if sight.beat.phase in _SLOW else limits.step):
    return None
  where = f'step {sight.beat.step}, {sight.beat.phase}'
  if len(behind) > 1:
    who = f'ranks {", ".join(map(str, sorted(behind)))} stand'
    return Fault(exits.STUCK, None, f'{who} still at {where} for {idle:.0f} s', sight.beat.step)
  reason = f'rank {rank} is alive but stands still at {where} for {idle:.0f} s'
  return Fault(exits.STUCK, rank, reason, sight.beat.step)


def weight(code: int) -> int:
  """How much an exit status says: 3 names the culprit, 1 may be a victim of another, 0 is well.

  A rank that loses its peer leaves with PEER_LOST, or the runtime ends it with SIGABRT.
  """
  if code in (exits.DONE, exits.PREEMPTED):
    return 0
  if code in (exits.PEER_LOST, _SIGABRT):
    return 1
  return 3 if code < 0 else 2


def of_exits(
  codes: Mapping[int, int], sights: Mapping[int, Sight], now: float, limits: Limits
) -> Fault:
  """Returns the fault behind the exit statuses of the processes of one host.

  Args:
    codes: rank -> exit status, all of them bad; negative is a signal. Rank -1 is a process that
      never said who it is.
    sights: every rank of the run, as far as it is watched.
    now: seconds.
    limits: seconds allowed.
  """
  rank = min(codes, key=lambda rank: (-weight(codes[rank]), rank))
  code = codes[rank]
  beat = sights[rank].beat if rank in sights else None
  step = beat.step if beat else None
  if code in _MAYBE_A_VICTIM:
    others = {r: s for r, s in sights.items() if r not in codes}
    for lost in silent(others, now, 2.5 * limits.beat):
      reason = f'{_silence(lost, sights[lost], now)}, and rank {rank} lost it'
      return Fault(exits.PEER_LOST, lost, reason, sights[lost].beat.step)
  who = f'rank {rank}' if rank >= 0 else 'the process of this host'
  if code == _SIGTERM:  # before its loop, which turns the signal into a checkpoint
    return Fault(exits.PREEMPTED, None, f'{who} was told to stop with nothing to save yet', step)
  # A victim does not tell whose; alone in the run it is nobody's victim.
  lost = rank if rank >= 0 and (weight(code) > 1 or len(sights) == 1) else None
  reason = f'{who} ended: {exits.describe(code)}'
  return Fault(exits.PEER_LOST if code < 0 else code, lost, reason, step)


def _silence(rank, sight, now):
  beat = sight.beat
  where = f'last seen on {beat.host} at step {beat.step}, {beat.phase}'
  return f'rank {rank} gives no sign of life for {now - sight.alive:.0f} s ({where})'
