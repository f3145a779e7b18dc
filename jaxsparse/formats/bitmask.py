"""Unstructured sparse weights: the kept values in row-major order, and one bit an entry."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.numerics import axes
from jaxsparse.numerics import packing


class TracedMaskError(ValueError):
  """A mask decides the shape of what it packs to, so it must be concrete: pack outside jit."""

  def __init__(self):
    super().__init__('Masks are packed outside jit: what they keep decides the shape of the '
                     'result, and this mask is traced.')


@functools.partial(jax.tree_util.register_dataclass, data_fields=['values', 'bits'],
                   meta_fields=['layout'])
@dataclasses.dataclass(frozen=True)
class BitmaskArray(formats.SparseFormat):
  """Values where the bit is set, zero elsewhere. For file size: no backend multiplies it faster.

  Attributes:
    values: `[*batch, kept, 1]`, row-major within a matrix, an array or packed integer codes;
      batch elements that keep fewer are padded with zeros.
    bits: uint8 `[*batch, ceil(R / 8), O]`.
    layout: of the dense weight.
  """

  values: Any
  bits: jax.Array
  layout: axes.Layout

  @classmethod
  def from_mask(cls, matrix, mask, layout) -> 'BitmaskArray':
    """Stores the entries of `matrix` `[*batch, R, O]` where `mask` is True.

    The number kept shapes the result, so `mask` must be concrete: call outside `jit`.

    Raises:
      TracedMaskError: a ValueError; `mask` is traced.
    """
    if isinstance(mask, jax.core.Tracer):
      raise TracedMaskError
    batch = mask.shape[:-2]
    flat = np.asarray(mask).reshape(*batch, -1)
    kept = int(flat.sum(-1).max(initial=0))
    order = np.argsort(~flat, axis=-1, kind='stable')[..., :kept]
    values = jnp.take_along_axis(jnp.where(mask, matrix, 0).reshape(flat.shape), order, axis=-1)
    return cls(values[..., None], packing.pack(mask, 1), layout)

  def _mask(self):
    rows = self.layout.matrix_shape[-2]
    return packing.unpack(self.bits, 1, rows).astype(bool)

  def _kept(self) -> int:
    stored = self.values
    return stored.rows if isinstance(stored, packed.PackedInts) else stored.shape[-2]

  def dense_matrix(self):
    values, mask = packed.unpacked(self.values)[..., 0], self._mask()
    if not values.shape[-1]:
      return jnp.zeros(mask.shape, self.dtype)
    flat = mask.reshape(*mask.shape[:-2], -1)
    slot = jnp.maximum(jnp.cumsum(flat, axis=-1) - 1, 0)
    dense = jnp.where(flat, jnp.take_along_axis(values, slot, axis=-1), 0)
    return dense.reshape(mask.shape).astype(self.dtype)

  def multiply_adds(self, rows):
    matrices = self.size // max(np.prod(self.layout.matrix_shape[-2:], dtype=int), 1)
    return formats.Cost(rows * self.size, rows * int(self._kept() * matrices))

  def map_values(self, f):
    dense, mask = f(self.dense_matrix()), self._mask()
    flat = mask.reshape(*mask.shape[:-2], -1)
    order = jnp.argsort(~flat, axis=-1, stable=True)[..., :self._kept()]
    values = jnp.take_along_axis(jnp.where(mask, dense, 0).reshape(flat.shape), order, axis=-1)
    return dataclasses.replace(self, values=values[..., None],
                               layout=self.layout.astype(dense.dtype))

  def with_bits(self, bits):
    return dataclasses.replace(self, values=packed.PackedInts.pack(self.values, bits, signed=True))
