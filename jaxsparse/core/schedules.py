"""When something is due, and how sparse a weight should be by then.

A Schedule is static: which counts refresh the mask, and the sparsity at each, are known on the
host, so that ordinary training steps hold no threshold search (DESIGN section 6, rule 1) and the
number of kept weights is an exact integer.
"""

import bisect
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import spelling as spell


class Every(NamedTuple):
  """Counts `start, start + n, ...` up to `end`, and `end` itself."""

  n: int
  start: int
  end: int

  def due(self, count):
    """Whether `count` is one of them; an int gives a bool, an array a bool array."""
    inside = (count >= self.start) & (count <= self.end)
    return inside & (((count - self.start) % self.n == 0) | (count == self.end))

  def steps(self) -> tuple[int, ...]:
    """All of them, ascending."""
    return tuple(sorted({*range(self.start, self.end + 1, self.n), self.end}))


def every(n: int, start: int, end: int) -> Every:
  """Due at `start`, each `n` steps after it, and at `end`.

  Raises:
    ValueError: `n` is below 1, `start` is negative, or `end` is before `start`.

  Example:
    >>> every(20, 10, 99).steps()
    (10, 30, 50, 70, 90, 99)
  """
  for word, value, least in (('every', n, 1), ('start', start, 0), ('end', end, start)):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
      raise ValueError(f'{word} must be an integer of at least {least}, got {value!r}.')
  return Every(int(n), int(start), int(end))


class Counts(NamedTuple):
  """A list of counts, ascending, where no `Every` says them."""

  counts: tuple[int, ...]

  def due(self, count):
    """Whether `count` is one of them; an int gives a bool, an array a bool array."""
    if isinstance(count, (int, np.integer)):
      index = bisect.bisect_left(self.counts, count)
      return index < len(self.counts) and self.counts[index] == int(count)
    counts = jnp.asarray(self.counts, jnp.int32)
    return counts[jnp.clip(jnp.searchsorted(counts, count), 0, counts.size - 1)] == count

  def steps(self) -> tuple[int, ...]:
    """All of them, ascending."""
    return self.counts


# `every` is also the name of an argument below.
_when = every


class Schedule(NamedTuple):
  """Sparsity over counts: `value(count)`, read at `when`; before it the sparsity is `initial`."""

  value: Callable[[int], float]
  when: Every | Counts | None
  initial: float
  final: float
  spelling: Any = None

  def due(self, count: int) -> bool:
    """Whether the mask is refreshed at `count`; never for a constant."""
    return False if self.when is None else self.when.due(count)

  def table(self) -> tuple[np.ndarray, list[float]]:
    """The refresh counts `[n]` and the sparsities `[n + 1]`: initially, then from each count on."""
    steps = () if self.when is None else self.when.steps()
    values = [self.initial, *(check_sparsity(float(self.value(s))) for s in steps)]
    return np.asarray(steps, np.int32), values

  def entry(self, count):
    """The index into `table()`'s sparsities that holds at a traced `count`."""
    steps, _ = self.table()
    return jnp.searchsorted(jnp.asarray(steps), count, side='right')


def check_sparsity(value: Any, word: str = 'sparsity') -> float:
  """`value` as a float in [0, 1).

  Raises:
    ValueError: it is not one.
  """
  number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
  if not number or not 0 <= value < 1:
    raise ValueError(f'{word} must be a fraction of zeros in [0, 1), got {value!r}.')
  return float(value)


def listed(values: dict[int, float], initial: float, spelling: Any) -> Schedule:
  """A schedule of `{count: sparsity}`, ascending; the last one is final.

  Example:
    >>> listed({3: 0.5, 4: 0.75}, 0.0, None).due(4)
    True
  """
  return Schedule(values.__getitem__, Counts(tuple(values)), initial, list(values.values())[-1],
                  spelling)


def constant(sparsity: float) -> Schedule:
  """`sparsity` from the start; the mask is chosen at init and stays.

  Example:
    >>> constant(0.9).table()[1]
    [0.9]
  """
  spelling = spell.call(constant, locals())
  s = check_sparsity(sparsity)
  return Schedule(lambda count: s, None, s, s, spelling)


def at_step(n: int, sparsity: float) -> Schedule:
  """Dense until count `n`, then `sparsity`, chosen once.

  Example:
    >>> at_step(100, 0.5).table()[1]
    [0.0, 0.5]
  """
  spelling = spell.call(at_step, locals())
  s = check_sparsity(sparsity)
  return Schedule(lambda count: s, every(1, n, n), 0.0, s, spelling)


def _ramp(final, initial, start, end, every_, shape, spelling):
  final, initial = check_sparsity(final), check_sparsity(initial, 'initial')
  when = _when(every_, start, end)
  if end == start:
    raise ValueError(f'end must come after start={start}, got {end}; use at_step for one step.')

  def value(count):
    if count <= start:
      return initial   # not what rounding makes of it
    return final + (initial - final) * shape(1.0 - min((count - start) / (end - start), 1.0))

  return Schedule(value, when, initial, final, spelling)


def cubic(final: float, *, start: int = 0, end: int, every: int = 100,
          initial: float = 0.0) -> Schedule:
  """`final + (initial - final) (1 - (t - start) / (end - start))^3`, forced at `end`.

  Zhu and Gupta, "To prune, or not to prune" (arXiv:1710.01878), equation 1. JaxPruner counts the
  interval from 0, reads the ramp at `t + 1`, and misses the target when no interval meets `end`.

  Args:
    final: sparsity reached exactly at `end`, whatever the phase and the interval.
    start: count of the first refresh.
    end: count of the last.
    every: counts between refreshes, from `start`.
    initial: sparsity before `start`.

  Raises:
    ValueError: a sparsity is outside [0, 1) or the counts are not ordered.

  Example:
    >>> cubic(0.5, start=0, end=2, every=1).table()[1]
    [0.0, 0.0, 0.4375, 0.5]
  """
  return _ramp(final, initial, start, end, every, lambda x: x**3,
               spell.call(cubic, locals()))


def linear(final: float, *, start: int = 0, end: int, every: int = 100,
           initial: float = 0.0) -> Schedule:
  """From `initial` to `final` in a straight line; arguments as in `cubic`.

  Example:
    >>> linear(0.5, end=2, every=1).table()[1]
    [0.0, 0.0, 0.25, 0.5]
  """
  return _ramp(final, initial, start, end, every, lambda x: x, spell.call(linear, locals()))


def cosine(final: float, *, start: int = 0, end: int, every: int = 100,
           initial: float = 0.0) -> Schedule:
  """From `initial` to `final` along half a cosine, flat at both ends; arguments as in `cubic`.

  `final + (initial - final) (1 + cos(pi (t - start) / (end - start))) / 2`, the annealing of
  Loshchilov and Hutter, "SGDR" (arXiv:1608.03983), equation 5, without restarts.

  Example:
    >>> [round(s, 3) for s in cosine(0.5, end=2, every=1).table()[1]]
    [0.0, 0.0, 0.25, 0.5]
  """
  # (1 - cos(pi x)) / 2 is exactly 0 at x = 0, so the target is met to the bit.
  return _ramp(final, initial, start, end, every, lambda x: (1 - float(np.cos(np.pi * x))) / 2,
               spell.call(cosine, locals()))


def schedule(value: Callable[[int], float], *, start: int, end: int, every: int,
             initial: float = 0.0) -> Schedule:
  """Your own `value(count)`, read every `every` counts from `start` and at `end`.

  It is called here, once a count, with integers on the host; a `jax` function (an optax schedule)
  may be one too.

  Args:
    value: count to sparsity.
    start: count of the first refresh.
    end: count of the last; `value(end)` is the sparsity from then on.
    every: counts between refreshes.
    initial: sparsity before `start`.

  Raises:
    ValueError: a value is outside [0, 1), with its count, or the counts are not ordered.

  Example:
    >>> schedule(lambda count: count / 4, start=1, end=2, every=1).table()[1]
    [0.0, 0.25, 0.5]
  """
  initial = check_sparsity(initial, 'initial')
  # A schedule may be made while another function is traced.
  with jax.ensure_compile_time_eval():
    values = {count: check_sparsity(float(value(count)), f'sparsity at count {count}')
              for count in _when(every, start, end).steps()}
  return listed(values, initial, None)


def as_schedule(value: Any) -> Schedule:
  """A Schedule as it is; a bare number is that sparsity from the start.

  Raises:
    ValueError: neither.
  """
  if isinstance(value, Schedule):
    return value
  return constant(check_sparsity(value))._replace(spelling=None)
