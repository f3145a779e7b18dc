"""LSQ: the step size of a quantizer is learned.

Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153). With `Qn = 2^(b-1)`,
`Qp = 2^(b-1) - 1`: `w_hat = round(clip(w / s, -Qn, Qp)) s` (equations 1 and 2), gradients straight
through the rounding (equations 3 and 5), that of `s` scaled by `1 / sqrt(N Qp)` (section 2.2), and
`s = 2 mean|w| / sqrt(Qp)` at first. One step size a matrix, as in the paper, or one an output; `N`
is the number of weights that share it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.formats import quantized
from jaxsparse.numerics import grids
from jaxsparse.numerics import rounding


class Lsq(NamedTuple):
  """Latents of LSQ."""

  w: jax.Array           # the weight's shape
  step_size: jax.Array   # float32 [*batch], or [*batch, O] of outputs; positive

  __latents__ = ('w',)


# The smallest step: an all-zero weight, or an optimizer that crosses zero, must not divide by it.
_SMALLEST = np.float32(1e-12)
_SHARED = {'tensor': (-2, -1), 'channel': (-2,)}   # axes of the weights that share a step


def lsq(bits: int = 8, *, granularity: str = 'tensor') -> transforms.Transform:
  """Quantization with a trained step size.

  The step size is a parameter: `optax.partition` with `jsp.label({'.*/step_size': ...})` gives it
  a learning rate of its own.

  Args:
    bits: 2 to 8.
    granularity: 'tensor' (a step size a matrix) or 'channel' (one an output), which loses less at 2
      and 3 bits.

  Returns:
    A Transform whose latents are `Lsq(w, step_size)`.

  Raises:
    ValueError: `bits` is not an integer from 2 to 8, or an unknown granularity.

  Example:
    >>> import jaxsparse as jsp
    >>> params, _ = jsp.lsq(bits=2).init({'kernel': jnp.array([[1.0], [-1.0]])})
    >>> float(params['kernel'].step_size)
    2.0
  """
  spelling = spell.call(lsq, locals())
  grid = grids.integer(bits, narrow=False)
  if granularity not in _SHARED:
    raise ValueError(f'granularity must be one of {", ".join(_SHARED)}, got {granularity!r}.')
  shared = _SHARED[granularity]

  def steps(step_size):
    sizes = jnp.maximum(jnp.abs(step_size.astype(jnp.float32)), _SMALLEST)
    return jnp.expand_dims(sizes, shared)

  def init(w):
    mean = jnp.abs(w.astype(jnp.float32)).mean(shared)
    step = mean * np.float32(2 / np.sqrt(grid.high))
    # A step of one for an all-zero weight: it maps 0 to 0 and can be trained from there.
    return Lsq(w, jnp.where(step > _SMALLEST, step, 1.0)), ()

  def apply(latents, state):
    w, step_size = latents
    entries = math.prod(w.shape[a] for a in shared)
    scale = steps(rounding.scale_gradient(
        step_size, 1 / float(np.sqrt(max(entries, 1) * grid.high))))
    inside = jnp.clip(w.astype(jnp.float32) / scale, grid.low, grid.high)
    return (rounding.straight_through(inside, jnp.round(inside)) * scale).astype(w.dtype)

  def pack(latents, state, *, layout, stored):
    w, step_size = latents
    source = stored if isinstance(stored, formats.SparseFormat) else w
    return quantized.QArray.encode(source, steps(step_size), layout.astype(w.dtype), grid)

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, pack=pack),
      spec=transforms.Spec(spelling, restructures=True))
