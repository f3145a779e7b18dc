"""Quantized weights: codes on a grid, and their scales, float32 or quantized themselves."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.kernels import chunked_matmul
from jaxsparse.numerics import axes
from jaxsparse.numerics import grids
from jaxsparse.numerics import packing
from jaxsparse.numerics import scales


@functools.partial(jax.tree_util.register_dataclass, data_fields=['codes', 'low', 'step'],
                   meta_fields=['group'])
@dataclasses.dataclass(frozen=True)
class QuantizedScale:
  """Positive scales in eight bits each, `exp(low + codes * step)`: double quantization.

  Dettmers et al., "QLoRA" (arXiv:2305.14314), section 3, with a grid of its own: even in the
  logarithm between a group's smallest and largest scale, which are exact. Of a scale only the
  relative error matters, which is at most half a step: 0.14 % where the largest scale of a group is
  twice the smallest, 1.4 % where it is a thousand times.

  Attributes:
    codes: uint8 `[*batch, G, O]`.
    low: float32 `[*batch, G, ceil(O / group)]`, the logarithm of a group's smallest scale.
    step: float32, of the same shape.
    group: neighbouring outputs that share `low` and `step`.
  """

  codes: jax.Array
  low: jax.Array
  step: jax.Array
  group: int

  @classmethod
  def encode(cls, scale: jax.Array, used: jax.Array, group: int) -> 'QuantizedScale':
    """Stores scales `[*batch, G, O]`; those not `used` take any value, so as to widen no group."""
    return cls(*_scale_codes(scale, used, group), group)

  def decode(self) -> jax.Array:
    """The scales, float32 `[*batch, G, O]`."""
    outputs = self.codes.shape[-1]
    full = lambda x: jnp.repeat(x, self.group, axis=-1)[..., :outputs]
    return jnp.exp(full(self.low) + self.codes.astype(jnp.float32) * full(self.step))


@functools.partial(jax.jit, static_argnames='group')
def _scale_codes(scale, used, group):
  outputs = scale.shape[-1]
  padding = [(0, 0)] * (scale.ndim - 1) + [(0, -outputs % group)]
  split = lambda x: jnp.pad(x, padding).reshape(*x.shape[:-1], -1, group)
  logs, used = split(jnp.log(scale)), split(used)
  some = used.any(-1)
  low = jnp.where(some, jnp.where(used, logs, jnp.inf).min(-1), 0.0)
  high = jnp.where(some, jnp.where(used, logs, -jnp.inf).max(-1), 0.0)
  step = (high - low) * np.float32(1 / 255)
  codes = jnp.rint((logs - low[..., None]) / jnp.where(step > 0, step, 1.0)[..., None])
  codes = jnp.where(used, jnp.clip(codes, 0, 255), 0).astype(jnp.uint8)
  return codes.reshape(*scale.shape[:-1], -1)[..., :outputs], low, step


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
      float32, float8 of microscaling formats, or a `QuantizedScale`: see `scale_values`.
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
  scale: Any
  layout: axes.Layout
  grid: grids.Grid
  group: Any = None
  zero: jax.Array | None = None
  factor: jax.Array | None = None
  input_scale: jax.Array | None = None

  @property
  def scale_values(self) -> jax.Array:
    """The scales as numbers, however they are stored."""
    return _numbers(self.scale)

  @property
  def is_plain(self) -> bool:
    """Whether this is signed integers times scales of columns or groups, and no more."""
    return (self.grid.is_integer and self.zero is None and self.factor is None
            and not isinstance(self.group, tuple))

  @classmethod
  def encode(cls, matrix, scale, layout, grid, group=None) -> 'QArray':
    """Stores a matrix `[*batch, R, O]` (array, or sparse format of it) on `grid`.

    `scale` is an array, a `QuantizedScale` or a `Scale` of either. A sparse format is kept sparse
    where the grid's zero has code 0, and densified otherwise. Codes are rounded to the scale as
    stored, quantized or not.
    """
    scale = scale if isinstance(scale, scales.Scale) else scales.Scale(scale)
    numbers = scale._replace(scale=_numbers(scale.scale))
    code = lambda m: scales.encode(m, numbers, grid, group)
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

  def stored_as(self, sparse):
    codes = self.codes
    if (not isinstance(sparse, formats.SparseFormat) or formats.is_format(codes)
        or self.grid.zero_code != 0 or isinstance(codes.data, jax.core.Tracer)):
      return self
    matrix = codes.unpack()
    found = sparse.map_values(lambda m: matrix).with_bits(self.grid.bits)
    smaller = formats.nbytes(found) < formats.nbytes(codes)
    # What took the weight over may have put something where there were zeros.
    whole = smaller and bool((found.dense_matrix() == matrix).all())
    return dataclasses.replace(self, codes=found) if whole else self

  def code_matrix(self) -> jax.Array:
    """The codes `[*batch, R, O]`, int8 or uint8."""
    if formats.is_format(self.codes):
      return self.codes.dense_matrix()
    return self.codes.unpack()

  def dense_matrix(self):
    scale = scales.Scale(self.scale_values, self.zero, self.factor)
    values = scales.decode(self.code_matrix(), scale, self.grid, self.group)
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
    elif x.ndim == 2 and chunked_matmul.worthwhile(x.shape[0], self.layout.matrix_shape):
      out = self._in_chunks(x.astype(dtype))
    else:
      out = x @ self.grid.decode(self.codes.unpack()).astype(dtype)
    return out * self.scale_values.astype(dtype)

  def _in_chunks(self, x):
    codes = self.codes
    width = packing.width(codes.bits)

    def decode(data):
      part = dataclasses.replace(codes, data=data, rows=data.shape[0] * 8 // width)
      return self.grid.decode(part.unpack()).astype(x.dtype)

    return chunked_matmul.chunked_matmul(x, codes.data, decode, width=width)

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
    numbers = self.scale_values
    plain = plain and numbers.dtype == jnp.float32 and not isinstance(self.group, tuple)
    if not plain or self.layout.axes != axes.DimensionNumbers((0,), (1,)) or self.ndim != 2:
      return None
    ids = jnp.clip(ids, 0, self.shape[0] - 1)
    codes = dataclasses.replace(self.codes, data=self.codes.data[ids]).unpack()
    cell = ids * 0 if numbers.shape[0] == 1 else ids // self.group
    return (self.grid.decode(codes) * numbers[cell]).astype(self.dtype)


def _numbers(scale):
  return scale.decode() if isinstance(scale, QuantizedScale) else scale
