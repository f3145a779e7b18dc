"""What products in plain XLA sum in."""

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> jnp.dtype:
  """float32, or `dtype` where that is wider.

  Example:
    >>> wide('bfloat16'), wide('float32')
    (dtype('float32'), dtype('float32'))
  """
  return jnp.promote_types(dtype, jnp.float32)
