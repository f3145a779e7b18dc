"""Histograms of what is multiplied with a weight, and the ranges that they say to clip at.

A histogram spans `[0, 2^e)`, e the least that holds what was met, in equal bins: one of another e
is brought to it by adding neighbouring bins, so that merging is exact and associative.
"""

from typing import Mapping, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.numerics import entropy
from jaxsparse.numerics import grids
from jaxsparse.numerics import scales
from jaxsparse.trace import observers

_BINS = 2 * entropy.BINS   # of which more than half are in use


class Histogram(NamedTuple):
  """Counts of magnitudes in equal bins of `[0, 2^exponent)`, and the extremes.

  Attributes:
    counts: float32 `[4096]`.
    exponent: float32 `()`, a whole number.
    low: float32 `()`, the smallest value.
    high: float32 `()`, the largest.
  """

  counts: jax.Array
  exponent: jax.Array
  low: jax.Array
  high: jax.Array


def _observe(contraction, x):
  if contraction.kind == 'gather':
    return None
  values = x.astype(jnp.float32).reshape(1, -1)
  low = scales.or_nan(values.min(initial=jnp.inf), values)
  high = values.max(initial=-jnp.inf)
  peak = jnp.maximum(jnp.maximum(-low, high), 2.0**-100)
  exponent = jnp.frexp(jnp.where(jnp.isfinite(peak), peak, 1.0))[1]
  top = jnp.ldexp(jnp.float32(1), exponent)
  return Histogram(entropy.histogram(jnp.abs(values), top[None], bins=_BINS)[0],
                   exponent.astype(jnp.float32), low, high)


def _merge(a, b):
  exponent = jnp.maximum(a.exponent, b.exponent)

  def widened(one):
    place = jnp.arange(_BINS) >> jnp.minimum(exponent - one.exponent, 31).astype(jnp.int32)
    return jnp.zeros(_BINS, jnp.float32).at[place].add(one.counts)

  return Histogram(widened(a) + widened(b), exponent, jnp.minimum(a.low, b.low),
                   jnp.maximum(a.high, b.high))


# Counts of the magnitudes of all inputs of a weight, as `Histogram`.
histogram = observers.Observer(_observe, _merge)


def kl_ranges(histograms: Mapping[str, Histogram],
              dtype: str = 'int8') -> dict[str, observers.Range]:
  """Ranges that clip outliers, by the entropy calibration of TensorRT.

  Args:
    histograms: {weight name: statistic} of `calibrate(apply_fn, params, batches, jsp.histogram)`.
    dtype: the grid of the activations: signed integers.

  Returns:
    {weight name: `Range`}, for `quantize_activations(apply_fn, dtype, ranges=...)`: symmetric,
    but where no input was negative the lower end is zero.

  Raises:
    ValueError: another grid, or another statistic.

  Example:
    >>> import jaxsparse as jsp, numpy as np
    >>> x = jnp.asarray(np.random.default_rng(0).normal(size=(500, 4)), jnp.float32)
    >>> x = x.at[0, 0].set(100.0)
    >>> fn, params = lambda params, x: x @ params['w'], {'w': jnp.eye(4)}
    >>> ranges = kl_ranges(jsp.calibrate(fn, params, [x], jsp.histogram))
    >>> float(ranges['w'].high) < 10
    True
  """
  grid = grids.grid(dtype)
  if not grid.is_integer or grid.zero_point:
    raise ValueError(f'kl_ranges are of signed integers, got {dtype!r}.')
  found = {}
  for name, seen in histograms.items():
    if not isinstance(seen, Histogram):
      raise ValueError(f'{name}: a statistic of jsp.histogram is needed, got '
                       f'{type(seen).__name__}.')
    kept = entropy.threshold(seen.counts.reshape(-1, _BINS), grid.high + 1)
    top = jnp.ldexp(kept / _BINS, seen.exponent.reshape(-1).astype(jnp.int32)).max()
    peak = jnp.minimum(top, jnp.maximum(-seen.low, seen.high).max())
    found[name] = observers.Range(jnp.where(seen.low.min() < 0, -peak, 0.0), peak)
  return found
