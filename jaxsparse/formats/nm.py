"""N:M sparse weights: n values of every m rows, with their positions.

A storage format on most backends (performance.md: XLA exposes no sparse dot): 2:4 float32 takes
0.53 of the dense bytes, 2:4 int8 0.63 of int8.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.numerics import axes


@functools.partial(jax.tree_util.register_dataclass, data_fields=['values', 'positions'],
                   meta_fields=['layout', 'n', 'm'])
@dataclasses.dataclass(frozen=True)
class NMArray(formats.SparseFormat):
  """At most `n` nonzeros in every `m` consecutive rows of a column.

  Attributes:
    values: `[*batch, R / m * n, O]`, an array or packed integer codes.
    positions: unsigned codes of `[*batch, R / m * n, O]`: the row within the group.
    layout: of the dense weight.
    n: kept in a group.
    m: rows of a group; divides R.
  """

  values: Any
  positions: packed.PackedInts
  layout: axes.Layout
  n: int
  m: int

  @classmethod
  def from_mask(cls, matrix, mask, layout, n, m) -> 'NMArray':
    """Stores the entries of `matrix` `[*batch, R, O]` where `mask` (n or fewer of m) is True."""
    values, order = _compact(matrix, mask, n, m)
    bits = max((m - 1).bit_length(), 1)
    return cls(values, packed.PackedInts.pack(order, bits, signed=False), layout, n, m)

  def dense_matrix(self):
    *batch, rows, outputs = self.layout.matrix_shape
    split = lambda a: a.reshape(*batch, rows // self.m, self.n, outputs)
    values, positions = split(packed.unpacked(self.values)), split(self.positions.unpack())
    shape = (*batch, rows // self.m, self.m, outputs)
    row = jax.lax.broadcasted_iota(positions.dtype, shape, len(shape) - 2)
    dense = jnp.zeros(shape, values.dtype)
    # n selections that fuse into one pass; a sum over an axis of n would not vectorize on CPU.
    for i in range(self.n):
      here = slice(i, i + 1)
      dense = jnp.where(row == positions[..., here, :], values[..., here, :], dense)
    return dense.reshape(self.layout.matrix_shape).astype(self.dtype)

  def multiply_adds(self, rows):
    dense = rows * self.size
    return formats.Cost(dense, dense * self.n // self.m)

  def map_values(self, f):
    dense = f(self.dense_matrix())
    grouped = dense.reshape(*dense.shape[:-2], dense.shape[-2] // self.m, self.m, dense.shape[-1])
    positions = self.positions.unpack().astype(jnp.int32)
    index = positions.reshape(*grouped.shape[:-2], self.n, grouped.shape[-1])
    values = jnp.take_along_axis(grouped, index, axis=-2).reshape(positions.shape)
    return dataclasses.replace(self, values=values, layout=self.layout.astype(values.dtype))

  def with_bits(self, bits):
    return dataclasses.replace(self, values=packed.PackedInts.pack(self.values, bits, signed=True))


@functools.partial(jax.jit, static_argnames=('n', 'm'))
def _compact(matrix, mask, n, m):
  """Values and positions `[*batch, R / m * n, O]` of the entries that `mask` keeps."""
  rows, outputs = matrix.shape[-2:]
  grouped = lambda a: a.reshape(*a.shape[:-2], rows // m, m, outputs)
  order = jnp.argsort(~grouped(mask), axis=-2, stable=True)[..., :n, :]
  values = jnp.take_along_axis(jnp.where(grouped(mask), grouped(matrix), 0), order, axis=-2)
  shape = (*matrix.shape[:-2], rows // m * n, outputs)
  return values.reshape(shape), order.reshape(shape)
