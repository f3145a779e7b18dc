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


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['codes', 'scale', 'zero', 'factor', 'input_scale'],
                   meta_fields=['layout', 'grid', 'group'])
@dataclasses.dataclass(frozen=True)
class QArray(formats.Format):
  """`decode(codes, zero) * scale * factor / input_scale`.

  Attributes:
    codes: `PackedInts` of the matrix `[*batch, R, O]`, or a sparse format of integer codes (then
      the grid maps code 0 to the value 0).
    scale: `[*batch, G, O]`, `[*batch, 1, O]`, `[*batch, 1, 1]`, or `[*batch, G, H]` of blocks;
      float32, or float8 of microscaling formats.
    layout: of the dense weight.
    grid: the codes' meaning.
    group: rows of the matrix that share a scale, `(rows, outputs)` of blocks; None for one scale a
      column or matrix.
    zero: zero points of the shape of `scale`, uint8 or float32, on grids that have them.
    factor: float32 `[*batch, 1, 1]`, of scales in two levels.
    input_scale: float32 `[*batch, R, 1]`, what each row was multiplied by before it was rounded
      (AWQ, SmoothQuant): inputs are to be divided by it.
  """

  codes: Any
  scale: jax.Array
  layout: axes.Layout
  grid: grids.Grid
  group: Any = None
  zero: jax.Array | None = None
  factor: jax.Array | None = None
  input_scale: jax.Array | None = None

  @classmethod
  def encode(cls, matrix, scale, layout, grid, group=None) -> 'QArray':
    """Stores a matrix `[*batch, R, O]` (array, or sparse format of it) on `grid`.

    `scale` is an array or a `Scale`. A sparse format is kept sparse where the grid's zero has code
    0, and densified otherwise.
    """
    scale = scale if isinstance(scale, scales.Scale) else scales.Scale(scale)
    code = lambda m: scales.encode(m, scale, grid, group)
    if isinstance(matrix, formats.SparseFormat) and grid.zero_code == 0:
      codes = matrix.map_values(code).with_bits(grid.bits)
    else:
      dense = matrix.dense_matrix() if formats.is_format(matrix) else matrix
      codes = packed.PackedInts.pack(code(dense), grid.bits, signed=grid.low < 0)
    return cls(codes, scale.scale, layout, grid, group, scale.zero, scale.factor)

  @classmethod
  def of_codes(cls, codes, scale: scales.Scale, layout, grid, group=None,
               input_scale=None) -> 'QArray':
    """Stores codes `[*batch, R, O]` that are found already."""
    stored = packed.PackedInts.pack(codes, grid.bits, signed=grid.low < 0)
    return cls(stored, scale.scale, layout, grid, group, scale.zero, scale.factor, input_scale)

  def _code_matrix(self):
    if formats.is_format(self.codes):
      return self.codes.dense_matrix()
    return self.codes.unpack()

  def dense_matrix(self):
    scale = scales.Scale(self.scale, self.zero, self.factor)
    values = scales.decode(self._code_matrix(), scale, self.grid, self.group)
    if self.input_scale is not None:
      values = values / self.input_scale
    return values.astype(self.dtype)

  def _scales_products(self) -> bool:
    # Codes times scale round once in float32, twice in a narrower dtype.
    return self.group is None and self.zero is None and self.dtype == jnp.float32

  def matmul(self, x):
    if not self._scales_products():
      return x @ self.dense_matrix()
    # One scale a column: scaling the product costs O per row instead of R * O in all.
    dtype = jnp.result_type(x, self.dtype)
    if self.input_scale is not None:
      x = x / jnp.swapaxes(self.input_scale, -1, -2).astype(x.dtype)
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
    plain = plain and self.zero is None and self.factor is None and self.input_scale is None
    plain = plain and self.scale.dtype == jnp.float32 and not isinstance(self.group, tuple)
    if not plain or self.layout.axes != axes.DimensionNumbers((0,), (1,)) or self.ndim != 2:
      return None
    ids = jnp.clip(ids, 0, self.shape[0] - 1)
    codes = dataclasses.replace(self.codes, data=self.codes.data[ids]).unpack()
    cell = ids * 0 if self.scale.shape[0] == 1 else ids // self.group
    return (self.grid.decode(codes) * self.scale[cell]).astype(self.dtype)
