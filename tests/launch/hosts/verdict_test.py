"""Who is to blame, by hand-made beats: no processes, no clock."""

import pytest

from launch import exits
from launch.hosts import pulse
from launch.hosts import verdict

_LIMITS = verdict.Limits(step=10, slow=100, beat=1)


def _beat(rank=0, beat=1, step=5, phase='wait', moves=1, closed=False, pid=7):
  return pulse.Beat(rank, 2, 'host', pid, beat, step, phase, moves, closed)


def _sight(alive, moved, seen=True, **fields):
  return verdict.Sight(_beat(**fields), alive, moved, seen)


def _watched(times):
  """A sight from `(time, beat)` pairs."""
  sight = None
  for now, beat in times:
    sight = verdict.look(sight, beat, now)
  return sight


def test_a_beat_keeps_alive_and_only_a_move_counts_as_progress():
  sight = _watched([(0, None), (1, _beat(beat=1)), (5, _beat(beat=2)), (8, _beat(beat=2))])
  assert (sight.alive, sight.moved, sight.seen) == (5, 1, True)
  assert verdict.look(sight, _beat(beat=3, moves=2), 9).moved == 9


def test_what_a_former_attempt_left_counts_as_nothing():
  sight = _watched([(0, _beat(beat=40)), (50, _beat(beat=40))])
  assert not sight.seen
  assert verdict.judge({0: sight}, 99, _LIMITS) is None
  fault = verdict.judge({0: sight}, 101, _LIMITS)
  assert fault.code == exits.PEER_LOST
  assert fault.rank == 0
  assert 'no sign of life within 100 s of the start' in fault.reason
  assert _watched([(0, _beat(pid=7)), (1, _beat(pid=8))]).seen


def test_the_silent_rank_is_lost_not_those_that_wait_for_it():
  sights = {0: _sight(alive=20, moved=9, rank=0), 1: _sight(alive=9, moved=9, rank=1)}
  assert verdict.judge(sights, 19, _LIMITS) is None
  fault = verdict.judge(sights, 20, _LIMITS)
  assert (fault.code, fault.rank, fault.step) == (exits.PEER_LOST, 1, 5)
  assert 'last seen on host at step 5, wait' in fault.reason


@pytest.mark.parametrize(
  'places, rank',
  [
    ([(5, 'wait'), (5, 'data')], 1),
    ([(5, 'data'), (7, 'data')], 0),
    ([(6, 'data'), (5, 'evaluate'), (6, 'wait')], 1),
    ([(5, 'step'), (5, 'step')], None),
  ],
)
def test_the_least_far_of_those_that_stand_still_is_stuck(places, rank):
  limits = verdict.Limits(step=10, slow=10, beat=1)
  sights = {
    r: _sight(alive=100, moved=80, rank=r, step=step, phase=phase)
    for r, (step, phase) in enumerate(places)
  }
  assert verdict.judge(sights, 90, limits) is None
  fault = verdict.judge(sights, 91, limits)
  assert (fault.code, fault.rank) == (exits.STUCK, rank)


def test_a_long_phase_of_one_rank_is_not_the_fault_of_those_that_wait():
  sights = {
    0: _sight(alive=60, moved=1, rank=0, phase='wait'),
    1: _sight(alive=60, moved=1, rank=1, phase='compile'),
  }
  assert verdict.judge(sights, 60, _LIMITS) is None
  late = {rank: s._replace(alive=102.0) for rank, s in sights.items()}
  assert verdict.judge(late, 102, _LIMITS).rank == 1


def test_who_comes_last_to_a_common_place_has_only_begun_to_wait():
  sights = {0: _sight(alive=20, moved=1, rank=0), 1: _sight(alive=20, moved=19, rank=1)}
  assert verdict.judge(sights, 20, _LIMITS) is None


def test_nobody_is_stuck_while_one_has_yet_to_appear_or_is_done():
  waits = _sight(alive=50, moved=1, rank=0, phase='step')
  assert verdict.judge({0: waits, 1: verdict.Sight(None, 1, 1, False)}, 50, _LIMITS) is None
  closed = _sight(alive=1, moved=1, rank=1, closed=True)
  assert verdict.judge({0: waits._replace(moved=49), 1: closed}, 50, _LIMITS) is None


def test_time_that_the_watcher_was_away_is_nobodys():
  sight = verdict.shift(_sight(alive=1, moved=1), 100)
  assert verdict.judge({0: sight}, 105, _LIMITS) is None


@pytest.mark.parametrize(
  'codes, code, rank',
  [
    ({0: 43, 1: -9}, 43, 1),
    ({0: -6, 1: -9}, 43, 1),
    ({0: -11, 1: 43}, 43, 0),
    ({0: 43, 1: 44}, 44, 1),
    ({0: 2}, 2, 0),
    ({0: 43}, 43, None),
    ({-1: 1}, 1, None),
    ({-1: -9}, 43, None),
    ({0: -15}, 42, None),
  ],
)
def test_the_culprit_is_told_from_its_victims(codes, code, rank):
  sights = {r: _sight(alive=1, moved=1, rank=r) for r in (0, 1)}
  fault = verdict.of_exits(codes, sights, 2, _LIMITS)
  assert (fault.code, fault.rank) == (code, rank)


@pytest.mark.parametrize('code', [-6, 43, 1, 74])
def test_a_victim_points_at_the_silent_rank(code):
  sights = {0: _sight(alive=9, moved=9, rank=0), 1: _sight(alive=1, moved=1, rank=1)}
  fault = verdict.of_exits({0: code}, sights, 10, _LIMITS)
  assert (fault.code, fault.rank) == (exits.PEER_LOST, 1)
  assert 'rank 0 lost it' in fault.reason


def test_alone_in_the_run_an_abort_is_its_own():
  sights = {0: _sight(alive=1, moved=1)}
  assert verdict.of_exits({0: -6}, sights, 2, _LIMITS).rank == 0
