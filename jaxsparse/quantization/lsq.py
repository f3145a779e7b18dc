"""LSQ: the step size of a quantizer is learned.

Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153). With `Qn = 2^(b-1)`,
`Qp = 2^(b-1) - 1`: `w_hat = round(clip(w / s, -Qn, Qp)) s` (equations 1 and 2), gradients straight
through the rounding (equations 3 and 5), that of `s` scaled by `1 / sqrt(N Qp)` (section 2.2), and
`s = 2 mean|w| / sqrt(Qp)` at first. One step size a matrix.
"""

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
  step_size: jax.Array   # float32 [*batch], positive

  __latents__ = ('w',)


# The smallest step: an all-zero weight, or an optimizer that crosses zero, must not divide by it.
_SMALLEST = np.float32(1e-12)


def _step(step_size):
  return jnp.maximum(jnp.abs(step_size.astype(jnp.float32)), _SMALLEST)[..., None, None]


def lsq(bits: int = 8) -> transforms.Transform:
  """Quantization with a trained step size.

  The step size is a parameter: `optax.partition` with `jsp.label({'.*/step_size': ...})` gives it
  a learning rate of its own.

  Args:
    bits: 2 to 8.

  Returns:
    A Transform whose latents are `Lsq(w, step_size)`.

  Raises:
    ValueError: `bits` is not an integer from 2 to 8.

  Example:
    >>> import jaxsparse as jsp
    >>> params, _ = jsp.lsq(bits=2).init({'kernel': jnp.array([[1.0], [-1.0]])})
    >>> float(params['kernel'].step_size)
    2.0
  """
  spelling = spell.call(lsq, locals())
  grid = grids.integer(bits, narrow=False)

  def init(w):
    mean = jnp.abs(w.astype(jnp.float32)).mean((-2, -1))
    step = mean * np.float32(2 / np.sqrt(grid.high))
    # A step of one for an all-zero weight: it maps 0 to 0 and can be trained from there.
    return Lsq(w, jnp.where(step > _SMALLEST, step, 1.0)), ()

  def apply(latents, state):
    w, step_size = latents
    entries = w.shape[-2] * w.shape[-1]
    scale = _step(rounding.scale_gradient(
        step_size, 1 / float(np.sqrt(entries * grid.high))))
    inside = jnp.clip(w.astype(jnp.float32) / scale, grid.low, grid.high)
    return (rounding.straight_through(inside, jnp.round(inside)) * scale).astype(w.dtype)

  def pack(latents, state, *, layout, stored):
    w, step_size = latents
    source = stored if isinstance(stored, formats.SparseFormat) else w
    return quantized.QArray.encode(source, _step(step_size), layout.astype(w.dtype), grid)

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, pack=pack),
      spec=transforms.Spec(spelling, restructures=True))
