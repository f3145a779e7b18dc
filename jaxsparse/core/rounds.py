"""Schedules of several rounds: ramps that start over, prunings with gaps, phases by turns."""

import itertools

import numpy as np

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell


def cyclic(final: float, *, cycles: int, start: int = 0, end: int, every: int = 100,
           initial: float = 0.0) -> schedules.Schedule:
  """`cycles` cubic ramps one after another, each from `initial` to `final`.

  Srinivas et al., "Cyclical Pruning for Sparse Neural Networks" (arXiv:2202.01290): at the start
  of each ramp weights come back, from zero, so that a wrong choice can be mended. Ramp `i` runs
  from `b_i` to `b_(i+1) - 1`, where the `b_i` divide `[start, end]` evenly, and the last to `end`;
  each reaches `final` exactly at its last count.

  Args:
    final: sparsity at the end of each ramp.
    cycles: number of ramps.
    start: count of the first refresh.
    end: count of the last.
    every: counts between refreshes, from the first of each ramp.
    initial: sparsity before `start` and at the start of each ramp.

  Raises:
    ValueError: a sparsity is outside [0, 1), or a ramp has no two counts.

  Example:
    >>> schedule = cyclic(0.8, cycles=2, end=3, every=1)
    >>> schedule.table()[0].tolist(), schedule.table()[1]
    ([0, 1, 2, 3], [0.0, 0.0, 0.8, 0.0, 0.8])
  """
  spelling = spell.call(cyclic, locals())
  schedules.every(every, start, end)
  if isinstance(cycles, bool) or not isinstance(cycles, (int, np.integer)) or cycles < 1:
    raise ValueError(f'cycles must be an integer of at least 1, got {cycles!r}.')
  bounds = [start + round(i * (end + 1 - start) / cycles) for i in range(cycles + 1)]
  if min(b - a for a, b in itertools.pairwise(bounds)) < 2:
    raise ValueError(f'{cycles} cycles from {start} to {end} leave one fewer than two counts; '
                     'use fewer cycles or a later end.')
  ramps = [schedules.cubic(final, start=a, end=b - 1, every=every, initial=initial)
           for a, b in itertools.pairwise(bounds)]
  values = {count: ramp.value(count) for ramp in ramps for count in ramp.when.steps()}
  return schedules.listed(values, ramps[0].initial, spelling)


def iterative(final: float, *, rounds: int, start: int = 0, every: int = 100,
              initial: float = 0.0) -> schedules.Schedule:
  """`rounds` prunings, each of the same fraction of what is left, with `every` steps to recover.

  Han et al. (arXiv:1506.02626); Frankle and Carbin (arXiv:1803.03635) take a fifth a round. After
  round `i` the density is `(1 - initial) ((1 - final) / (1 - initial))^(i / rounds)`.

  Args:
    final: sparsity reached exactly in the last round, at `start + (rounds - 1) every`.
    rounds: how often weights are pruned.
    start: count of the first round.
    every: steps of fine-tuning after a round.
    initial: sparsity before `start`.

  Raises:
    ValueError: a sparsity is outside [0, 1), or `rounds` is not a positive integer.

  Example:
    >>> iterative(0.75, rounds=2, start=5, every=10).table()
    (array([ 5, 15], dtype=int32), [0.0, 0.5, 0.75])
  """
  spelling = spell.call(iterative, locals())
  final = schedules.check_sparsity(final)
  initial = schedules.check_sparsity(initial, 'initial')
  if isinstance(rounds, bool) or not isinstance(rounds, (int, np.integer)) or rounds < 1:
    raise ValueError(f'rounds must be an integer of at least 1, got {rounds!r}.')
  schedules.every(every, start, start)
  ratio = (1 - final) / (1 - initial)
  values = {start + (i - 1) * every: 1 - (1 - initial) * ratio ** (i / rounds)
            for i in range(1, rounds)}
  return schedules.listed(values | {start + (rounds - 1) * every: final}, initial, spelling)


def alternating(sparsity: float, *, start: int, every: int, end: int) -> schedules.Schedule:
  """Dense until `start`, then `sparsity` and dense by turns of `every` steps; sparse from `end`.

  The phases of AC/DC (Peste et al., arXiv:2106.12379).

  Args:
    sparsity: of the compressed phases.
    start: count at which the first compressed phase begins.
    every: steps of a phase.
    end: count from which the weights stay compressed.

  Raises:
    ValueError: the sparsity is outside [0, 1) or the counts are not ordered.

  Example:
    >>> alternating(0.9, start=2, every=3, end=8).table()
    (array([2, 5, 8], dtype=int32), [0.0, 0.9, 0.0, 0.9])
  """
  spelling = spell.call(alternating, locals())
  s = schedules.check_sparsity(sparsity)
  counts = schedules.every(every, start, end).steps()
  values = {count: 0.0 if i % 2 else s for i, count in enumerate(counts)}
  return schedules.listed(values | {end: s}, 0.0, spelling)
