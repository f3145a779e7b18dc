"""A product with a stored weight that is decoded a few rows at a time.

XLA:CPU fuses nothing into a product's operand, so `x @ decode(codes)` writes the whole float weight
out at every call, which takes longer than a product of few rows. A scan over chunks of the
reduction keeps what is decoded in the cache.
"""

from typing import Callable

import jax
import jax.numpy as jnp

ROWS = 128   # of a chunk: 64 kB of float32 for 128 outputs
_FEW = 32    # rows of x up to which reading the weight, not multiplying, takes the time
_LARGE = 2**18   # entries of a weight that is not worth a loop below


def worthwhile(rows: int, shape: tuple[int, int]) -> bool:
  """Whether `rows` rows times a weight `[K, N]` are faster in chunks: on one CPU device.

  Several devices may share the reduction axis, and a loop over that would gather it.
  """
  return (jax.default_backend() == 'cpu' and jax.device_count() == 1 and rows <= _FEW
          and shape[0] * shape[1] >= _LARGE and shape[0] >= 2 * ROWS)


def chunked_matmul(x: jax.Array, data: jax.Array, decode: Callable[[jax.Array], jax.Array], *,
                   width: int = 8) -> jax.Array:
  """`x @ decode(data)[:K]`, differentiable in `x`.

  Args:
    x: floating `[M, K]`.
    data: bytes `[ceil(K * width / 8), N]`, packed along the rows.
    decode: `[n, N]` of `data` to `[n * 8 // width, N]` of the dtype of `x`.
    width: bits of an entry of the weight.

  Returns:
    `[M, N]` of the dtype of `x`.

  Example:
    >>> data = jnp.arange(300 * 2, dtype=jnp.uint8).reshape(300, 2)
    >>> x = jnp.ones((3, 300))
    >>> out = chunked_matmul(x, data, lambda d: d.astype(jnp.float32))
    >>> bool((out == x @ data.astype(jnp.float32)).all())
    True
  """
  reduction = x.shape[1]
  count = reduction // ROWS
  whole, stored = count * ROWS, count * ROWS * width // 8
  chunks = data[:stored].reshape(count, ROWS * width // 8, data.shape[1])
  parts = x[:, :whole].reshape(x.shape[0], count, ROWS).swapaxes(0, 1)

  def body(total, chunk):
    part, codes = chunk
    return total + part @ decode(codes), None

  out = jnp.zeros((x.shape[0], data.shape[1]), x.dtype)
  out, _ = jax.lax.scan(body, out, (parts, chunks))
  if whole < reduction:
    out = out + x[:, whole:] @ decode(data[stored:])[:reduction - whole]
  return out
