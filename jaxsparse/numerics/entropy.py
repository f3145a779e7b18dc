"""Where to clip, by the divergence of histograms: the entropy calibration of TensorRT.

Migacz, "8-bit Inference with TensorRT" (GTC 2017), with P the histogram of magnitudes up to a
threshold, what lies beyond it added to the last bin, and Q the same bins merged to as many as the
grid has magnitudes, then spread evenly over the bins that P does not leave empty: the threshold of
the least `sum p log(p / q)`. TensorRT tries every bin from the 128th on; here every 16th.
"""

import functools

import jax
import jax.numpy as jnp

BINS = 2048
_FIRST, _STRIDE = 128, 16
_EMPTY = 1e-9   # of a bin of Q in which P has something


def histogram(magnitudes: jax.Array, peak: jax.Array, bins: int = BINS) -> jax.Array:
  """Counts in equal bins of `[0, peak]`.

  Args:
    magnitudes: float32 `[cells, n]`, none negative.
    peak: float32 `[cells]`, positive; what is larger counts in the last bin.
    bins: how many.

  Returns:
    float32 `[cells, bins]`.
  """
  part = magnitudes / peak[:, None]
  place = jnp.clip((jnp.nan_to_num(part, nan=0.0) * bins).astype(jnp.int32), 0, bins - 1)
  cells = jnp.broadcast_to(jnp.arange(len(place))[:, None], place.shape)
  return jnp.zeros((len(place), bins), jnp.float32).at[cells, place].add(1.0)


@functools.partial(jax.jit, static_argnames='levels')
def threshold(counts: jax.Array, levels: int) -> jax.Array:
  """How many bins to keep, so that a grid of `levels` magnitudes tells least of what it loses.

  Args:
    counts: float32 `[cells, bins]`, more bins than 128.
    levels: magnitudes of the grid, zero among them: 128 of int8.

  Returns:
    int32 `[cells]`, from 128 to `bins`; of several that are as good the least.
  """
  bins = counts.shape[-1]
  place = jnp.arange(bins)[None]
  before = lambda a: jnp.pad(jnp.cumsum(a, -1), ((0, 0), (1, 0)))
  seen = before(counts)
  total = seen[:, -1:]

  def divergence(kept):
    inside = place < kept
    outside = total - seen[:, kept][:, None]
    p = jnp.where(inside, counts, 0) + jnp.where(place == kept - 1, outside, 0)
    some = p > 0
    step = kept // levels
    group = jnp.minimum(place // jnp.maximum(step, 1), levels - 1)[0]
    start = jnp.minimum(group * step, kept)
    end = jnp.where(group == levels - 1, kept, jnp.minimum(start + step, kept))
    filled = before(some.astype(jnp.float32))
    q = (seen[:, end] - seen[:, start]) / jnp.maximum(filled[:, end] - filled[:, start], 1)
    q = jnp.where(some, q, 0)
    p = p / jnp.maximum(total, 1)
    q = q / jnp.maximum(q.sum(-1, keepdims=True), 1e-30)
    terms = p * (jnp.log(jnp.maximum(p, 1e-30)) - jnp.log(jnp.maximum(q, _EMPTY)))
    return jnp.where(some, terms, 0).sum(-1)

  def body(n, carry):
    least, best = carry
    kept = _FIRST + n * _STRIDE
    found = divergence(kept)
    better = found < least
    return jnp.where(better, found, least), jnp.where(better, kept, best)

  first = jnp.full(len(counts), jnp.inf), jnp.full(len(counts), bins, jnp.int32)
  return jax.lax.fori_loop(0, (bins - _FIRST) // _STRIDE + 1, body, first)[1]
