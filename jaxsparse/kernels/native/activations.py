"""Activations rounded to eight bits, each row by its own largest magnitude."""

import jax
import jax.numpy as jnp
import numpy as np

MOST_DEPTH = 1 << 16
_LEAST = np.float32(2.0**-100)


def rounded(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Codes and scales of rows: `x` is nearly `codes * scale`, `scale = max |x| / 127`.

  Args:
    x: float32 `[rows, R]`.

  Returns:
    int8 `[rows, R]` and float32 `[rows, 1]`. A row with a NaN or an infinity has codes 0 and scale
    NaN; a row below 2^-100 throughout is zero.
  """
  limit = jnp.max(jnp.abs(x), axis=-1, keepdims=True, initial=0.0)
  finite = jnp.isfinite(limit)
  some = finite & (limit >= _LEAST)
  scale = jnp.where(finite, jnp.where(some, limit * np.float32(1 / 127), 0.0), jnp.nan)
  inverse = jnp.where(some, np.float32(127) / jnp.where(some, limit, 1.0), 0.0)
  return jnp.rint(jnp.where(some, x, 0.0) * inverse).astype(jnp.int8), scale


def check_depth(depth: int) -> None:
  """Raises ValueError where a sum of products of bytes might not fit 32 bits."""
  if depth > MOST_DEPTH:
    raise ValueError(f'Products of bytes take at most {MOST_DEPTH:,} rows of weights, got '
                     f'{depth:,}; split the weight.')
