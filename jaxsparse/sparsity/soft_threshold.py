"""STR: soft-threshold reparametrization, one trained threshold a matrix.

Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable Sparsity"
(arXiv:2002.03231), equation 3: `w' = sign(w) relu(|w| - sigmoid(s))`. Where sparsity comes from is
weight decay on `s` and `w` (equation 5), which the optimizer does; how much of it there will be is
found by trying, not asked for. Unlike the paper, which starts from `w`, the latents start at
`w + sign(w) sigmoid(s)`, so that the model seen first is the one given.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import masking


class SoftThreshold(NamedTuple):
  """Latents of STR."""

  w: jax.Array           # the weight's shape
  threshold: jax.Array   # float32 [*batch]; its sigmoid is subtracted

  __latents__ = ('w',)


def soft_threshold(*, initial: float = -5.0) -> transforms.Transform:
  """Learned unstructured sparsity, projected in the forward pass.

  The threshold is a parameter: `optax.partition` with `jsp.label({'.*/threshold': ...})` gives it
  a rate and a decay of its own. Masks are not kept: count the zeros of `apply`'s weights.

  Args:
    initial: `s` at first. The paper takes -3,200 (dense) to -5; the closer to 0, the sparser.

  Returns:
    A Transform whose latents are `SoftThreshold(w, threshold)`.

  Raises:
    ValueError: `initial` is not a finite number.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.soft_threshold(initial=0.0)
    >>> params, state = transform.init({'kernel': jnp.array([[1.0, -2.0]])})
    >>> params['kernel'].w.tolist(), transform.apply(params, state)['kernel'].tolist()
    ([[1.5, -2.5]], [[1.0, -2.0]])
  """
  spelling = spell.call(soft_threshold, locals())
  number = isinstance(initial, (int, float)) and not isinstance(initial, bool)
  if not number or not -float('inf') < initial < float('inf'):
    raise ValueError(f'initial must be a finite number, got {initial!r}.')

  def init(w):
    threshold = jnp.full(w.shape[:-2], initial, jnp.float32)
    full = w.astype(jnp.float32)
    shifted = full + jnp.sign(full) * _height(threshold)
    return SoftThreshold(shifted.astype(w.dtype), threshold), ()

  def apply(latents, state):
    full = latents.w.astype(jnp.float32)
    left = jax.nn.relu(jnp.abs(full) - _height(latents.threshold))
    return (jnp.sign(full) * left).astype(latents.w.dtype)

  def pack(latents, state, *, layout):
    return masking.pack_zeros(apply(latents, state), layout.astype(latents.w.dtype))

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, pack=pack),
      spec=transforms.Spec(spelling, restructures=True))


def _height(threshold):
  return jax.nn.sigmoid(threshold.astype(jnp.float32))[..., None, None]
