"""Rounding, and the one straight-through estimator of the library.

Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv:1308.3432).
"""

import jax
import jax.numpy as jnp


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
