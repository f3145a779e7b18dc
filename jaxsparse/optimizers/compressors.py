"""What gradients can be made of for the wire: int8, signs, the largest few, low rank.

A compressor sees one gradient, and says what this worker sent (as the dense array that it stands
for) and what all workers together received.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.numerics import grids
from jaxsparse.numerics import scales
from jaxsparse.numerics import select


class Compressor(NamedTuple):
  """A lossy code of a gradient.

  Attributes:
    init: `(gradient) -> state`, a tree of arrays.
    compress: `(gradient, state, axis_name) -> (sent, received, state)`: the float32 arrays that
      this worker's message stands for, and the mean over the workers of the mapped axis (the same
      as `sent` where `axis_name` is None).
  """

  init: Callable[[jax.Array], Any]
  compress: Callable[[jax.Array, Any, Any], tuple[jax.Array, jax.Array, Any]]


def int8() -> Compressor:
  """Eight-bit codes with one absmax scale a gradient; codes are gathered.

  Example:
    >>> int8().compress(jnp.array([127.0, 0.4, -3.0]), (), None)[0].tolist()
    [127.0, 0.0, -3.0]
  """
  def encode(x):
    scale = scales.of_finite(x, None, grids.grid('int8')).reshape(())
    return jnp.round(x / scale).astype(jnp.int8), scale

  return _coded(encode, lambda code, shape: code[0].astype(jnp.float32) * code[1])


def sign() -> Compressor:
  """The sign of each entry times the mean magnitude (Karimireddy et al., arXiv:1901.09847).

  Signs are gathered, a byte each: XLA has no smaller element on every backend.

  Example:
    >>> sign().compress(jnp.array([3.0, -1.0]), (), None)[0].tolist()
    [2.0, -2.0]
  """
  def encode(x):
    return jnp.where(x < 0, jnp.int8(-1), jnp.int8(1)), jnp.abs(x).mean()

  return _coded(encode, lambda code, shape: code[0].astype(jnp.float32) * code[1])


def top_k(fraction: float) -> Compressor:
  """The largest magnitudes, at least one; values and indices are gathered.

  Lin et al., "Deep Gradient Compression" (arXiv:1712.01887). Exact, without a sort.

  Args:
    fraction: of the entries of each gradient, in (0, 1].

  Raises:
    ValueError: it is not.

  Example:
    >>> top_k(0.5).compress(jnp.array([3.0, -4.0, 1.0, 0.0]), (), None)[0].tolist()
    [3.0, -4.0, 0.0, 0.0]
  """
  if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
    raise ValueError(f'fraction must be in (0, 1], got {fraction!r}.')

  def compress(x, state, axis_name):
    kept = max(round(x.size * fraction), 1)
    sent = jnp.where(select.top_k_mask(jnp.abs(x), kept), x, 0)
    # Held back, what is not finite would never be seen.
    sent = jnp.where(jnp.isfinite(x).all(), sent, jnp.nan)
    if axis_name is None:
      return sent, sent, state
    flat = sent.reshape(-1)
    (index,) = jnp.nonzero(flat, size=kept, fill_value=x.size)
    values = flat.at[index].get(mode='fill', fill_value=0)
    index, values = (jax.lax.all_gather(a, axis_name).reshape(-1) for a in (index, values))
    total = jnp.zeros_like(flat).at[index].add(values, mode='drop')
    return sent, (total / jax.lax.axis_size(axis_name)).reshape(x.shape), state

  return Compressor(lambda x: (), compress)


def power_sgd(rank: int, *, seed: int = 0) -> Compressor:
  """A product of two thin factors by one step of power iteration, warm from the step before.

  Vogels et al., "PowerSGD" (arXiv:1905.13727), algorithms 1 and 2. The factors are averaged, so
  that nothing is gathered; gradients of rank 1 or 0 are averaged whole.

  Args:
    rank: of the factors, at most the smaller side of each gradient.
    seed: of the first factor.

  Raises:
    ValueError: the rank is no positive integer.

  Example:
    >>> import numpy as np
    >>> g, compressor = jnp.ones((4, 3)), power_sgd(1)
    >>> sent, _, _ = compressor.compress(g, compressor.init(g), None)
    >>> bool(np.allclose(sent, g, atol=1e-5))
    True
  """
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    raise ValueError(f'rank must be a positive integer, got {rank!r}.')

  def init(x):
    if x.ndim < 2:
      return ()
    columns = x.size // x.shape[0]
    return jax.random.normal(jax.random.key(seed), (columns, min(rank, columns, x.shape[0])))

  def compress(x, q, axis_name):
    mean = lambda a: a if axis_name is None else jax.lax.pmean(a, axis_name)
    if x.ndim < 2:
      return x, mean(x), q
    m = x.reshape(x.shape[0], -1)
    p, _ = jnp.linalg.qr(mean(jnp.matmul(m, q, precision='highest')))
    q = mean(jnp.matmul(m.T, p, precision='highest'))
    received = jnp.matmul(p, q.T, precision='highest').reshape(x.shape)
    # The paper's: each worker keeps what the others' mean lacks of its own gradient.
    return received, received, q

  return Compressor(init, compress)


BY_NAME = {'int8': int8, 'sign': sign}


def _coded(encode, decode) -> Compressor:
  def compress(x, state, axis_name):
    code = encode(x)
    sent = decode(code, x.shape)
    if axis_name is None:
      return sent, sent, state
    gathered = jax.tree.map(lambda a: jax.lax.all_gather(a, axis_name), code)
    return sent, jax.vmap(lambda c: decode(c, x.shape))(gathered).mean(0), state

  return Compressor(lambda x: (), compress)
