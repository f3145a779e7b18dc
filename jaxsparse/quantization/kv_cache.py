"""Keys and values of attention in few bits: a vector of one head at one position is one cell.

As Hooper et al., "KVQuant" (arXiv:2401.18079), section 3.1, quantize values: per token, so that a
new token changes nothing that is stored. Keys may be finer, in groups along the head's width; per
channel over many tokens (KIVI, arXiv:2402.02750) needs tokens held back, and is not here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats import packed
from jaxsparse.numerics import scales
from jaxsparse.quantization import scheme as schemes


@functools.partial(jax.tree_util.register_dataclass, data_fields=['codes', 'scale'],
                   meta_fields=['scheme', 'dtype'])
@dataclasses.dataclass(frozen=True)
class QuantizedCache:
  """Vectors `[..., tokens, heads, width]` as codes; a pytree, for `jit` and `scan` alike.

  Attributes:
    codes: `PackedInts` of `[..., tokens, heads, width, 1]`.
    scale: of `[..., tokens, heads, G, 1]`, with zero points on grids that have them.
    scheme: grid, group and scale rule.
    dtype: of what is read.
  """

  codes: packed.PackedInts
  scale: scales.Scale
  scheme: schemes.Scheme
  dtype: Any

  @property
  def shape(self) -> tuple[int, ...]:
    """`[..., tokens, heads, width]`."""
    return (*self.codes.data.shape[:-2], self.codes.rows)

  @property
  def nbytes(self) -> int:
    """Bytes of codes, scales and zero points."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(self))


def quantize_cache(x: jax.Array, dtype: str = 'int8', *, group: int | None = None,
                   scale: Any = None) -> QuantizedCache:
  """Stores keys or values in few bits; of zeros, an empty cache of that shape.

  Args:
    x: `[..., tokens, heads, width]`.
    dtype: a grid or microscaling format, as for `quantize`.
    group: entries of the width that share a scale; None for one scale a vector.
    scale: the scale rule, as for `quantize`.

  Returns:
    A `QuantizedCache`, for `append_to_cache` and `read_cache`.

  Raises:
    ValueError: what `quantize` raises, blocks, or fewer than three axes.

  Example:
    >>> cache = quantize_cache(jnp.zeros((4, 2, 8)), 'int4')
    >>> cache = append_to_cache(cache, jnp.ones((1, 2, 8)), 0)
    >>> read_cache(cache)[:2, 0, 0].tolist(), cache.nbytes
    ([1.0, 0.0], 64)
  """
  scheme = schemes.scheme(dtype, None, group, scale)
  if scheme.granularity == 'block' or x.ndim < 3:
    raise ValueError('a cache is [..., tokens, heads, width], with scales for whole vectors or '
                     f'groups of their entries; got shape {x.shape} and {scheme.granularity}.')
  return _stored(x, scheme, jnp.dtype(x.dtype))


def append_to_cache(cache: QuantizedCache, x: jax.Array, position: jax.Array | int,
                    ) -> QuantizedCache:
  """The cache with the tokens of `x` from `position` on; no other token is touched.

  Args:
    cache: of `quantize_cache`.
    x: `[..., new tokens, heads, width]`.
    position: of its first token, traced or not; as `dynamic_update_slice` has it, one too far on
      is moved back until the tokens fit.

  Raises:
    ValueError: `x` has other axes than the cache, or more tokens.
  """
  of_tokens = lambda shape: (*shape[:-3], *shape[-2:])
  if x.ndim != len(cache.shape) or of_tokens(x.shape) != of_tokens(cache.shape) or (
      x.shape[-3] > cache.shape[-3]):
    raise ValueError(f'tokens of shape {x.shape} do not fit a cache of {cache.shape}.')
  put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
      old, new, position, axis=len(cache.shape) - 3)
  return jax.tree.map(put, cache, _stored(x, cache.scheme, cache.dtype))


def _stored(x, scheme, dtype) -> QuantizedCache:
  columns = x[..., None]
  fitted = scheme.fit(columns)
  codes = scales.encode(columns, fitted, scheme.grid, scheme.group)
  return QuantizedCache(
      packed.PackedInts.pack(codes, scheme.grid.bits, signed=scheme.grid.low < 0), fitted, scheme,
      dtype)


def read_cache(cache: QuantizedCache) -> jax.Array:
  """The vectors `[..., tokens, heads, width]`, of the dtype that was stored."""
  scheme = cache.scheme
  values = scales.decode(cache.codes.unpack(), cache.scale, scheme.grid, scheme.group)
  return values[..., 0].astype(cache.dtype)
