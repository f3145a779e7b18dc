"""Scales of a weight's rows, from the sizes of the inputs that meet them."""

import jax
import jax.numpy as jnp

from jaxsparse.core import calibration
from jaxsparse.numerics import axes


def norms(stats, layout: axes.Layout) -> jax.Array:
  """The size of each input, float32 `[*batch, R, 1]`.

  Raises:
    ValueError: it has no statistics, or ones that do not fit, or is a grouped convolution.
  """
  found = calibration.norms_of(stats, layout)
  if found.shape[-1] != 1:
    raise ValueError('the inputs of a grouped convolution differ from output to output, so its '
                     'rows have no one scale; exclude it with at(...), or use gptq.')
  return found


def positive(sizes: jax.Array) -> jax.Array:
  """Sizes relative to the largest of a matrix, none of them below 1e-4."""
  largest = sizes.max((-2, -1), keepdims=True, initial=0.0)
  return jnp.maximum(sizes / jnp.where(largest > 0, largest, 1.0), 1e-4)


def centred(rows: jax.Array) -> jax.Array:
  """`rows` times the number that makes the least and the greatest each other's inverse."""
  low, high = rows.min(-2, keepdims=True), rows.max(-2, keepdims=True)
  return rows / jnp.sqrt(low * high)
