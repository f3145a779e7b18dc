"""Rounding, and the one straight-through estimator of the library.

Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv:1308.3432).
"""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def straight_through(x: jax.Array, q: jax.Array) -> jax.Array:
  """`q` forward; backward the gradient goes to `x` unchanged and none to `q`.

  Returning `q` itself rather than `x + (q - x)` keeps the forward value exact to the bit, so that
  what is trained equals what is packed.

  Args:
    x: any shape, the value that is trained.
    q: same shape and dtype, the value that is used.

  Returns:
    `q`.
  """
  del x
  return q


straight_through.defvjp(lambda x, q: (q, None), lambda _, g: (g, jnp.zeros_like(g)))


@jax.custom_vjp
def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
  """`x` forward; backward the gradient times `factor` (LSQ, arXiv:1902.08153, section 2.2)."""
  del factor
  return x


scale_gradient.defvjp(
    lambda x, factor: (x, jnp.asarray(factor, x.dtype)),
    lambda factor, g: (g * factor, jnp.zeros_like(factor)))


@jax.custom_vjp
def add_gradient(x: jax.Array, extra: jax.Array) -> jax.Array:
  """`x` forward; backward the gradient plus `extra`: a penalty of known slope inside the view.

  Args:
    x: any shape.
    extra: same shape; no gradient flows into it.

  Returns:
    `x`.
  """
  del extra
  return x


add_gradient.defvjp(
    lambda x, extra: (x, extra),
    lambda extra, g: (g + extra.astype(g.dtype), jnp.zeros_like(extra)))


def nearest(x: jax.Array, low: float, high: float) -> jax.Array:
  """`x` rounded half to even and clipped to `[low, high]`; the clip comes first, as casts wrap."""
  return jnp.round(jnp.clip(x, low, high))


def bytes_of(x: jax.Array) -> jax.Array:
  """float32 of magnitude at most 127 rounded half to even, as int8; of NaN any code.

  The last bits of `x + 1.5 * 2^23`: XLA:CPU vectorizes that, and a cast, which must clip, not.
  """
  bits = jax.lax.bitcast_convert_type(x + np.float32(1.5 * 2**23), jnp.int32)
  return bits.astype(jnp.int8)


def noise(shape: tuple[int, ...], seed) -> jax.Array:
  """uint32 noise by a hash of the row-major index and `seed`: ten integer operations an entry.

  The finalizer of MurmurHash3. Threefry costs about seventeen times a cast of the same entries.

  Args:
    shape: of the noise.
    seed: an integer, or an integer array `()`.
  """
  index, stride = jnp.zeros(shape, jnp.uint32), 1
  for a in reversed(range(len(shape))):
    step = np.uint32(stride & 0xFFFFFFFF)
    index += jax.lax.broadcasted_iota(jnp.uint32, shape, a) * step
    stride *= shape[a]
  h = index + mix(seed)
  return _finish(h)


def uniform(shape: tuple[int, ...], seed) -> jax.Array:
  """float32 noise in [0, 1), by the hash of `noise`."""
  return (noise(shape, seed) >> np.uint32(8)).astype(jnp.float32) * np.float32(2.0**-24)


def mix(*seeds) -> jax.Array:
  """One uint32 `()` of several integers."""
  h = jnp.zeros([], jnp.uint32)
  for seed in seeds:
    seed = np.uint32(seed & 0xFFFFFFFF) if isinstance(seed, int) else seed
    h = _finish(h * np.uint32(31) + jnp.asarray(seed).astype(jnp.uint32) + np.uint32(0x9E3779B9))
  return h


def _finish(h):
  h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return h ^ (h >> np.uint32(16))


def stochastic(x: jax.Array, seed) -> jax.Array:
  """float32 `x` as bfloat16, up or down with the chances that make the mean `x`.

  Values between the largest bfloat16 and infinity may become infinite; NaN and infinity stay.

  Args:
    x: any shape.
    seed: an integer, or an integer array `()`; the same seed gives the same rounding.

  Example:
    >>> x = jnp.full(10_000, 1.0 + 1 / 512)   # a quarter of the way to the next bfloat16
    >>> abs(float(stochastic(x, 0).astype(jnp.float32).mean()) - (1.0 + 1 / 512)) < 2e-4
    True
  """
  x = x.astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  moved = bits + (noise(x.shape, seed) & np.uint32(0xFFFF))
  # A carry would change the exponent of infinity and NaN, and the cut the NaN of few bits.
  quiet = jnp.where(jnp.isnan(x), bits | np.uint32(0x400000), bits)
  kept = jnp.where(jnp.isfinite(x), moved, quiet) >> np.uint32(16)
  # Cut by hand: a cast would round once more.
  return jax.lax.bitcast_convert_type(kept.astype(jnp.uint16), jnp.bfloat16)
