"""A convolution of an odd number of input channels with one channel of zeros more, on CPUs.

XLA:CPU is slower at 3, 5 or 7 input channels than at one more where it makes 17 to 32 outputs, half
of the 64 that a first layer of pictures often has; from 33 on it is not. What a CNN gains by it is
the ratio to the model built small, by `python -m experiments.benchmarks.shrunk_speed`.
"""

import jax
import jax.numpy as jnp

from jaxsparse.trace import jaxprs

_OUTPUTS = range(17, 33)


def bind(primitive, params: dict, operands: list) -> list:
  """`jaxprs.bind` of `conv_general_dilated`, of an input and a kernel."""
  x, w = operands
  numbers = params['dimension_numbers']
  channels, inputs, outputs = numbers.lhs_spec[1], numbers.rhs_spec[1], numbers.rhs_spec[0]
  plain = lambda x, w: jaxprs.bind(primitive, params, [x, w])
  alone = params['feature_group_count'] == params['batch_group_count'] == 1
  if not alone or w.shape[inputs] < 3 or w.shape[inputs] % 2 == 0 or (
      w.shape[outputs] not in _OUTPUTS):
    return plain(x, w)

  def even(x, w):
    wide = lambda a, axis: jnp.pad(a, [(0, int(n == axis)) for n in range(a.ndim)])
    return plain(wide(x, channels), wide(w, inputs))

  return jax.lax.platform_dependent(x, w, cpu=even, default=plain)
