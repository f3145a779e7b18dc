"""Quantization-aware training: the model sees `decode(encode(w / s)) s`, the gradient passes.

Jacob et al., "Quantization and Training of Neural Networks" (arXiv:1712.05877), with a dynamic
scale recomputed at every step and no gradient through it. Integers are narrow (see
`numerics.grids`), so a zero stays exactly zero and what is trained is what is packed, to the bit.
"""

from typing import Any

import jax

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import rounding
from jaxsparse.quantization import scheme as schemes


def fake_quantize(dtype: str, *, granularity: str | None = None, group: Any = None,
                  scale: Any = None) -> transforms.Transform:
  """Rounds weights to a grid in the forward pass, straight-through in the backward.

  Args:
    dtype: 'int3' to 'int8' (narrow, symmetric), 'int2' (four codes), 'ternary', 'binary', 'uint2'
      to 'uint8' (with zero points), 'float8_e4m3', 'float8_e5m2', 'float4_e2m1', 'nf4'; or a
      format that fixes the other arguments: 'mxfp8', 'mxfp4', 'mxint8', 'nvfp4'.
    granularity: 'tensor', 'channel' (a scale an output), 'group' (a scale every `group` rows of
      an output) or 'block' (a scale every `group[0]` rows and `group[1]` outputs); the last group
      or block may be smaller. None: 'channel', or what `group` says.
    group: rows of a group, or `(rows, outputs)` of a block.
    scale: the scale rule: 'absmax', 'minmax' (zero points), 'absmean', `percentile(q)`, 'mse'
      (the clipping, in steps of 1 %, that loses least), 'hqq', 'power_of_two'. None: 'absmax', of
      unsigned grids 'minmax', of ternary and binary ones 'absmean'.

  Returns:
    A Transform; packs to `QArray`, and keeps an earlier stage's sparse format inside it.

  Raises:
    ValueError: unknown dtype, granularity or rule, or ones that do not go together.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.fake_quantize('int4')
    >>> params, state = transform.init({'kernel': jnp.array([[7.0], [1.2]])})
    >>> transform.apply(params, state)['kernel'].tolist()
    [[7.0], [1.0]]
  """
  spelling = spell.call(fake_quantize, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)

  def apply(w, state):
    return rounding.straight_through(w, scheme.round(jax.lax.stop_gradient(w)))

  def pack(w, state, *, layout, stored):
    return scheme.store(w, layout, stored=stored)

  return parametrization.leafwise(
      parametrization.Parametrization(lambda w: (w, ()), apply, pack=pack),
      spec=transforms.Spec(spelling))
