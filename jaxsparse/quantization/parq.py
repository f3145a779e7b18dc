"""PARQ: weights are drawn to the grid little by little, by a proximal map that grows steep.

Jin et al., "PARQ: Piecewise-Affine Regularized Quantization" (arXiv:2503.15748), algorithm AProx.
What is trained is u, the sum of the steps; the model sees the proximal map of a piecewise-affine
regularizer, here between neighbouring values `l <= u <= h` of the grid with middle m:

  `w = min(max(m + (u - m) / r, l), h)`,

and the gradient at w moves u. The inverse slope r falls from 1 (w is u) to 0 (w is the nearest
value) along a sigmoid, so that training begins in float and ends as with a straight-through
estimator. Beyond the outermost values, which the paper leaves open, `w = l + r (u - l)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.numerics import rounding
from jaxsparse.quantization import scheme as schemes

_FLATTEST = np.float32(1e-30)   # inverse slope: what is not the middle is a value of the grid


def parq(dtype: str, *, end: int, start: int = 0, steepness: float = 10.0,
         granularity: str | None = None, group: Any = None,
         scale: Any = None) -> transforms.Transform:
  """Quantization that is reached by annealing: float until `start`, on the grid from `end` on.

  Args:
    dtype: as for `fake_quantize`: an integer grid with or without zero points, 'ternary',
      'binary' or 'nf4'.
    end: the update from which weights are on the grid.
    start: the update from which they are drawn to it.
    steepness: of the sigmoid; the larger, the more of the way is made half-way between.
    granularity: as for `fake_quantize`, as are group and scale.
    group: rows of a group, or `(rows, outputs)`.
    scale: the scale rule.

  Returns:
    A Transform. Outside a trace it packs to dense arrays before `end`; otherwise to `QArray`.

  Raises:
    ValueError: what `fake_quantize` raises, a floating grid, counts that are not `0 <= start <
      end`, or a steepness that is not positive.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.parq('int4', end=2)
    >>> params, state = transform.init({'kernel': jnp.array([[7.0], [1.4]])})
    >>> for _ in range(3):
    ...   print(round(float(transform.apply(params, state)['kernel'][1, 0]), 4))
    ...   state = transform.update(params, state)
    1.4
    1.3
    1.0
  """
  spelling = spell.call(parq, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)
  if scheme.grid.floating is not None:
    raise ValueError(f'parq is for integers and tables, whose neighbours are known; got {dtype!r}.')
  whole = lambda n: isinstance(n, int) and not isinstance(n, bool)
  if not whole(start) or not whole(end) or not 0 <= start < end:
    raise ValueError(f'start and end are updates with 0 <= start < end, got {start!r}, {end!r}.')
  if isinstance(steepness, bool) or not isinstance(steepness, (int, float)) or not (
      0 < steepness < 100):
    raise ValueError(f'steepness must be in (0, 100), got {steepness!r}.')

  def inverse_slope(count):
    left = 1.0 - jnp.clip((count - start) / (end - start), 0.0, 1.0)
    # (s(left) - s(0)) / (s(1) - s(0)) of the sigmoid s(x) = 1 / (1 + exp(steepness (1/2 - x))), in
    # a form without differences, which vanish where it is nearly straight.
    half = steepness / 2
    return jnp.sinh(half * left) / (2 * jnp.sinh(half / 2) * jnp.cosh(half * (left - 0.5)))

  def apply(w, state, *, count):
    fixed = jax.lax.stop_gradient(w)
    drawn = jax.lax.switch(
        (count >= end).astype(jnp.int32) + (count > start).astype(jnp.int32),
        [lambda w: w, lambda w: _drawn(w, inverse_slope(count), scheme), scheme.round], fixed)
    return rounding.straight_through(w, drawn)

  def pack(w, state, *, layout, stored, count):
    if not isinstance(count, jax.core.Tracer) and int(count) < end:
      return apply(w, state, count=jnp.asarray(count))
    return scheme.store(w, layout, stored=stored if isinstance(stored, formats.SparseFormat)
                        else None)

  return parametrization.leafwise(
      parametrization.Parametrization(lambda w: (w, ()), apply, pack=pack),
      spec=transforms.Spec(spelling))


def _drawn(w, r, scheme):
  size, zero = schemes.cells(scheme.fit(w), w.shape, scheme.group)
  x = w.astype(jnp.float32) / size
  grid = scheme.grid
  if grid.table is None:
    low, high = grid.low - zero, grid.high - zero
    # A zero point need not be whole; the values are a whole number of steps above the lowest.
    below = jnp.clip(jnp.floor(x - low), 0, grid.high - grid.low - 1) + low
    above = below + 1
  else:
    values = np.asarray(grid.table, np.float32)
    place = jnp.clip(jnp.searchsorted(jnp.asarray(values), x, side='right') - 1, 0, len(values) - 2)
    low, high = values[0], values[-1]
    below, above = jnp.asarray(values)[place], jnp.asarray(values)[place + 1]
  middle = (below + above) * 0.5
  # Near the end of very many updates r rounds to 0.
  inside = jnp.clip(middle + (x - middle) / jnp.maximum(r, _FLATTEST), below, above)
  nearest = jnp.clip(x, low, high)
  return (jnp.where(x == nearest, inside, nearest + r * (x - nearest)) * size).astype(w.dtype)
