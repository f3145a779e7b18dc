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
from jaxsparse.formats import quantized
from jaxsparse.numerics import hashing
from jaxsparse.numerics import rounding as straight
from jaxsparse.numerics import scales
from jaxsparse.quantization import scheme as schemes


def fake_quantize(dtype: str, *, granularity: str | None = None, group: Any = None,
                  scale: Any = None, rounding: str = 'nearest',
                  seed: int = 0) -> transforms.Transform:
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
      (the clipping, in steps of 1 %, that loses least), 'kl' (the clipping that changes the
      histogram least; of signed integers, by tensor or channel), 'hqq', 'power_of_two'. None:
      'absmax', of unsigned grids 'minmax', of ternary and binary ones 'absmean'.
    rounding: 'nearest', or 'stochastic': up or down with the chances that make the mean the weight,
      of integer grids; other noise at every step, and what is packed is that of the last one.
    seed: of the noise.

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
  schemes.check_rounding(rounding, scheme)
  hashing.check_seed(seed)
  by_chance = rounding == 'stochastic'

  def apply(w, state, *, seed):
    fixed = jax.lax.stop_gradient(w)
    chance = straight.uniform(w.shape, jax.random.bits(seed)) if by_chance else None
    return straight.straight_through(w, scheme.round(fixed, chance))

  def pack(w, state, *, layout, stored, seed):
    if not by_chance:
      return scheme.store(w, layout, stored=stored)
    fitted = scheme.fit(w)
    codes = scales.encode(w, fitted, scheme.grid, scheme.group,
                          straight.uniform(w.shape, jax.random.bits(seed)))
    return quantized.QArray.of_codes(codes, fitted, layout.astype(w.dtype), scheme.grid,
                                     scheme.group)

  return parametrization.leafwise(
      parametrization.Parametrization(lambda w: (w, ()), apply, pack=pack), seed=seed,
      spec=transforms.Spec(spelling))
