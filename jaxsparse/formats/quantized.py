"""Quantized weights: codes on a grid, and float32 scales."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.numerics import axes
from jaxsparse.numerics import grids
from jaxsparse.numerics import scales


@functools.partial(jax.tree_util.register_dataclass, data_fields=['codes', 'scale'],
                   meta_fields=['layout', 'grid', 'group'])
@dataclasses.dataclass(frozen=True)
class QArray(formats.Format):
  """`decode(codes) * scale`.

  Attributes:
    codes: `PackedInts` of the matrix `[*batch, R, O]`, or a sparse format of integer codes (then
      the grid maps code 0 to the value 0).
    scale: float32 `[*batch, G, O]`, `[*batch, 1, O]` or `[*batch, 1, 1]`.
    layout: of the dense weight.
    grid: the codes' meaning.
    group: rows of the matrix that share a scale; None for one scale a column or matrix.
  """

  codes: Any
  scale: jax.Array
  layout: axes.Layout
  grid: grids.Grid
  group: int | None = None

  @classmethod
  def encode(cls, matrix, scale, layout, grid, group=None) -> 'QArray':
    """Stores a matrix `[*batch, R, O]` (array, or sparse format of it) on `grid`.

    A sparse format is kept sparse where the grid's zero has code 0, and densified otherwise.
    """
    code = lambda m: _codes(m, scale, grid, group)
    if isinstance(matrix, formats.SparseFormat) and grid.zero_code == 0:
      codes = matrix.map_values(code).with_bits(grid.bits)
    else:
      dense = matrix.dense_matrix() if formats.is_format(matrix) else matrix
      codes = packed.PackedInts.pack(code(dense), grid.bits, signed=grid.low < 0)
    return cls(codes, scale, layout, grid, group)

  def _code_matrix(self):
    if formats.is_format(self.codes):
      return self.codes.dense_matrix()
    return self.codes.unpack()

  def dense_matrix(self):
    rows = self.layout.matrix_shape[-2]
    values = self.grid.decode(self._code_matrix()) * scales.expand(self.scale, rows, self.group)
    return values.astype(self.dtype)

  def _scales_products(self) -> bool:
    # Codes times scale round once in float32, twice in a narrower dtype.
    return self.group is None and self.dtype == jnp.float32

  def matmul(self, x):
    if not self._scales_products():
      return x @ self.dense_matrix()
    # One scale a column: scaling the product costs O per row instead of R * O in all.
    dtype = jnp.result_type(x, self.dtype)
    if formats.is_format(self.codes):
      out = self.codes.astype(dtype).matmul(x.astype(dtype))
    else:
      out = x @ self.grid.decode(self.codes.unpack()).astype(dtype)
    return out * self.scale.astype(dtype)

  def multiply_adds(self, rows):
    dense = super().multiply_adds(rows)
    if not formats.is_format(self.codes):
      return dense
    cost = self.codes.multiply_adds(rows)
    return cost if self._scales_products() else formats.Cost(dense.executed, cost.ideal)

  def take(self, ids):
    """Rows of an embedding table, decoded one by one; None when axis 0 is not the reduction."""
    plain = isinstance(self.codes, packed.PackedInts) and self.codes.bits in (7, 8)
    if not plain or self.layout.axes != axes.DimensionNumbers((0,), (1,)) or self.ndim != 2:
      return None
    ids = jnp.clip(ids, 0, self.shape[0] - 1)
    codes = dataclasses.replace(self.codes, data=self.codes.data[ids]).unpack()
    cell = ids * 0 if self.scale.shape[0] == 1 else ids // self.group
    return (self.grid.decode(codes) * self.scale[cell]).astype(self.dtype)


@functools.partial(jax.jit, static_argnames=('grid', 'group'))
def _codes(matrix, scale, grid, group):
  full = scales.expand(scale, matrix.shape[-2], group)
  return grid.encode(matrix.astype(jnp.float32) / full)
