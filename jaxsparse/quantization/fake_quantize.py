"""Quantization-aware training: the model sees `decode(encode(w / s)) s`, the gradient passes.

Jacob et al., "Quantization and Training of Neural Networks" (arXiv:1712.05877), with the dynamic
absmax scale recomputed at every step and no gradient through it. Integers are narrow (see
`numerics.grids`), so a zero stays exactly zero and what is trained is what is packed, to the bit.
"""

import jax
import jax.numpy as jnp

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.formats import quantized
from jaxsparse.numerics import grids
from jaxsparse.numerics import rounding
from jaxsparse.numerics import scales
from jaxsparse.quantization import frozen


def fake_quantize(dtype: str, *, granularity: str = 'channel',
                  group: int | None = None) -> transforms.Transform:
  """Rounds weights to a grid in the forward pass, straight-through in the backward.

  Args:
    dtype: 'int3' to 'int8' (narrow, symmetric) or 'nf4'.
    granularity: 'tensor', 'channel' (a scale an output) or 'group' (a scale every `group` rows of
      an output; the last group may be shorter).
    group: rows of a group.

  Returns:
    A Transform; packs to `QArray`, and keeps an earlier stage's sparse format inside it.

  Raises:
    ValueError: unknown dtype or granularity, or a group that does not go with it.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.fake_quantize('int4')
    >>> params, state = transform.init({'kernel': jnp.array([[7.0], [1.2]])})
    >>> transform.apply(params, state)['kernel'].tolist()
    [[7.0], [1.0]]
  """
  spelling = spell.call(fake_quantize, locals())
  grid = grids.grid(dtype)
  group = frozen.check_granularity(granularity, group)

  def apply(w, state):
    rounded = _round_to_grid(jax.lax.stop_gradient(w), grid, granularity, group)
    return rounding.straight_through(w, rounded)

  def pack(w, state, *, layout, stored):
    scale = scales.absmax(w, grid.limit, granularity=granularity, group=group)
    source = stored if isinstance(stored, formats.SparseFormat) else w
    return quantized.QArray.encode(source, scale, layout.astype(w.dtype), grid, group)

  return parametrization.leafwise(
      parametrization.Parametrization(lambda w: (w, ()), apply, pack=pack),
      spec=transforms.Spec(spelling))


def _round_to_grid(w: jax.Array, grid: grids.Grid, granularity: str, group: int | None):
  """A matrix `[*batch, R, O]` rounded to its grid, same dtype."""
  scale = scales.absmax(w, grid.limit, granularity=granularity, group=group)
  full = scales.expand(scale, w.shape[-2], group)
  codes = grid.encode(w.astype(jnp.float32) / full)
  return (grid.decode(codes) * full).astype(w.dtype)
