"""Integer codes in the dtypes that TPUs read: int8, and int4 two to a byte without unpacking.

XLA:TPU converts such codes on their way into the product, so a token's product reads a half or a
quarter of bfloat16's bytes. A file's packed bytes it would unpack into a whole weight first.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.formats import quantized
from jaxsparse.kernels import quantized_matmul
from jaxsparse.numerics import axes

_PALLAS_ROWS = 32   # groups of a multiple of so many rows have a kernel


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['codes', 'scale', 'input_scale'], meta_fields=['layout', 'backend'])
@dataclasses.dataclass(frozen=True)
class TPUArray(formats.Format):
  """`codes * scale / input_scale`.

  Attributes:
    codes: int8 or int4 `[*batch, R, O]`; where groups do not divide the rows, with rows of zeros
      behind them.
    scale: float32 `[*batch, G, O]`: each row of scales is for as many rows of codes.
    layout: of the dense weight.
    backend: of `quantized_matmul`.
    input_scale: float32 `[*batch, R, 1]` that inputs are divided by, or None.
  """

  codes: jax.Array
  scale: jax.Array
  layout: axes.Layout
  backend: str = 'xla'
  input_scale: jax.Array | None = None

  @property
  def scale_values(self) -> jax.Array:
    """The scales, as those of a `QArray`."""
    return self.scale

  def dense_matrix(self):
    rows = self.codes.shape[-2] // self.scale.shape[-2]
    matrix = self.codes.astype(jnp.float32) * jnp.repeat(self.scale, rows, axis=-2)
    matrix = matrix[..., :self.layout.matrix_shape[-2], :]
    if self.input_scale is not None:
      matrix = matrix / self.input_scale
    return matrix.astype(self.dtype)

  def matmul(self, x):
    x = x.astype(jnp.result_type(x, self.dtype))
    if self.input_scale is not None:
      x = x / jnp.swapaxes(self.input_scale, -1, -2).astype(x.dtype)
    behind = self.codes.shape[-2] - x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, behind)])
    run = functools.partial(quantized_matmul.quantized_matmul, backend=self.backend)
    for _ in self.layout.batch:
      run = jax.vmap(run)
    return run(x, self.codes, self.scale)

  def take(self, ids):
    """Rows of an embedding table, decoded one by one; None when axis 0 is not the reduction."""
    if (self.layout.axes != axes.DimensionNumbers((0,), (1,)) or self.ndim != 2
        or self.input_scale is not None):
      return None
    ids = jnp.clip(ids, 0, self.shape[0] - 1)
    cell = ids // (self.codes.shape[0] // self.scale.shape[0])
    return (self.codes[ids].astype(jnp.float32) * self.scale[cell]).astype(self.dtype)


def laid_out(stored: formats.Format) -> formats.Format:
  """A `TPUArray` of integers with float32 scales for columns or groups of rows; else as it is."""
  if not isinstance(stored, quantized.QArray) or not isinstance(stored.codes, packed.PackedInts):
    return stored
  grid, scale = stored.grid, stored.scale_values
  if not stored.is_plain or scale.dtype != jnp.float32 or not stored.size:
    return stored
  codes = stored.codes.unpack()
  codes = codes.astype(jnp.int4) if grid.low >= -8 and grid.high <= 7 else codes
  scale = jnp.broadcast_to(scale, (*codes.shape[:-2], scale.shape[-2], codes.shape[-1]))
  if stored.group is None:
    return TPUArray(codes, scale, stored.layout, 'xla', stored.input_scale)
  behind = stored.group * scale.shape[-2] - codes.shape[-2]
  codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 2) + [(0, behind), (0, 0)])
  kernel = scale.shape[-2] > 1 and not stored.group % _PALLAS_ROWS
  backend = 'pallas_tpu' if kernel else 'xla'
  return TPUArray(codes, scale, stored.layout, backend, stored.input_scale)
