"""A quantized weight whose product contracts integers: activations are rounded on the way in.

Jacob et al., "Quantization and Training of Neural Networks" (arXiv:1712.05877), section 2.2:
`x_hat w_hat = (s_x s_w) (q_x q_w)` with 32-bit sums of 8-bit codes. XLA has a product of int8 on
every backend; for a lone row XLA:CPU would first write the weight out in 32 bits, so that is a
product of floats.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.formats import quantized
from jaxsparse.formats import tpu
from jaxsparse.numerics import grids
from jaxsparse.numerics import rounding
from jaxsparse.numerics import scales

LONGEST = 2**31 // 128**2 - 1   # products of int8 that an int32 holds


def contracts_integers(w, grid: grids.Grid) -> bool:
  """Whether `IntegerProduct` takes the weight `w` and activations on `grid`."""
  if isinstance(w, tpu.TPUArray):
    plain = w.scale.shape[-2] == 1
  else:
    plain = isinstance(w, quantized.QArray) and isinstance(w.codes, packed.PackedInts)
    plain = plain and w.is_plain and w.group is None
  return (plain and w.input_scale is None and grid.is_integer and not grid.zero_point
          and w.layout.matrix_shape[-2] <= LONGEST)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['stored', 'step'],
                   meta_fields=['grid'])
@dataclasses.dataclass(frozen=True)
class IntegerProduct(formats.Wrapper):
  """`stored`, whose `matmul` rounds its input to `grid` and contracts codes.

  Gradients are those of the product of floats, straight through the rounding. A row that holds NaN,
  or with steps of its own an infinity, gives NaN.

  Attributes:
    stored: a `QArray` or `TPUArray` that `contracts_integers`.
    step: float32, one number: what a code of the activations is worth; None to take, for each row,
      the least that clips nothing.
    grid: of the activations.
  """

  stored: quantized.QArray | tpu.TPUArray
  step: jax.Array | None
  grid: grids.Grid

  def matmul(self, x):
    values = jax.lax.stop_gradient(x.astype(jnp.float32))
    if self.step is None:
      step = scales.of_finite(values, -1, self.grid)
    else:
      step = scales.or_nan(self.step.reshape(()), values, -1, keepdims=True)
    codes = self.grid.encode(values / step)
    fake = rounding.straight_through(x, (self.grid.decode(codes) * step).astype(x.dtype))
    # Compiled only where gradients, or a lone row, ask for it.
    floats = self.stored.matmul(fake)
    if x.shape[-2] < 2:
      return floats
    weights = packed.unpacked(self.stored.codes).astype(jnp.int8)
    sums = jnp.matmul(codes, weights, preferred_element_type=jnp.int32)
    out = sums.astype(jnp.float32) * (step * self.stored.scale_values)
    return rounding.straight_through(floats, out.astype(floats.dtype))
