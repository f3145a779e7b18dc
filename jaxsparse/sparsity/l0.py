"""L0 regularization: gates that are sampled, learned and, at the end, exactly zero or not.

Louizos et al., "Learning Sparse Neural Networks through L0 Regularization" (arXiv:1712.01312),
section 2.2. Letters: `a` the gate's log alpha, beta = 2/3, gamma = -0.1, zeta = 1.1,
`u ~ U(0, 1)`: `s = sigmoid((log u - log(1 - u) + a) / beta)`,
`z = clip(s (zeta - gamma) + gamma, 0, 1)` and `w' = w z`. A gate is open with probability
`sigmoid(a - beta log(-gamma / zeta))`; the penalty is the expected number of open gates, each
counted for its weights, and its derivative is inside the view. From `end` on there is no noise:
`z = clip(sigmoid(a) (zeta - gamma) + gamma, 0, 1)` (equation 13).

The noise comes from seed, name and count, so `apply` is a function and a resumed run repeats it.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import parametrization
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import hashing
from jaxsparse.numerics import rounding
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import views

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1
_AXES = {'entry': (), 'output': (-2,), 'reduction': (-1,)}


class L0(NamedTuple):
  """Latents of L0 regularization."""

  w: jax.Array           # the weight's shape
  log_alpha: jax.Array   # float32: the weight's shape, or [*batch, 1, O] or [*batch, R, 1]

  __latents__ = ('w',)


def l0(*, unit: str = 'entry', penalty: float = 0.1 / 60_000, droprate: float = 0.3,
       end: int = 75_000, seed: int = 0) -> transforms.Transform:
  """Learned gates under an expected-L0 penalty; stochastic in the forward pass until `end`.

  Args:
    unit: what has a gate of its own: 'entry' (a weight), 'output' or 'reduction' (a channel).
    penalty: of one weight behind an open gate, added to the loss; the paper's 0.1 over the number
      of training examples.
    droprate: the share of gates closed at first, in (0, 1).
    end: count from which gates are no longer sampled.
    seed: of the noise.

  Returns:
    A Transform whose latents are `L0(w, log_alpha)`.

  Raises:
    ValueError: `unit` is none of the three, `droprate` is outside (0, 1), `penalty` or `end` is
      negative.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.l0(unit='output', end=0)
    >>> params, state = transform.init({'kernel': jnp.ones((4, 2))})
    >>> params['kernel'].log_alpha.shape
    (1, 2)
    >>> params['kernel'] = params['kernel']._replace(log_alpha=jnp.array([[9.0, -9.0]]))
    >>> transform.apply(params, state)['kernel'][0].tolist()
    [1.0, 0.0]
  """
  spelling = spell.call(l0, locals())
  if unit not in _AXES:
    raise ValueError(f'unit must be one of {", ".join(_AXES)}, got {unit!r}.')
  if isinstance(droprate, bool) or not isinstance(droprate, float) or not 0 < droprate < 1:
    raise ValueError(f'droprate must be in (0, 1), got {droprate!r}.')
  views.check_penalty('penalty', penalty)
  schedules.every(1, end, end)   # says what is wrong with it
  hashing.check_seed(seed)
  across = _AXES[unit]

  def init(w):
    shape = tuple(1 if a - w.ndim in across else n for a, n in enumerate(w.shape))
    return L0(w, jnp.full(shape, math.log((1 - droprate) / droprate), jnp.float32)), ()

  def apply(latents, state, *, count, seed):
    w, log_alpha = latents
    weights_each = w.shape[-2] * w.shape[-1] // (log_alpha.shape[-2] * log_alpha.shape[-1])
    slope = jax.lax.stop_gradient(_open_slope(log_alpha)) * (penalty * weights_each)
    log_alpha = rounding.add_gradient(log_alpha.astype(jnp.float32), slope)
    # Away from 0 and 1, where the logarithms end.
    u = jax.random.uniform(seed, log_alpha.shape, minval=1e-6, maxval=1 - 1e-6)
    noisy = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / _BETA)
    opened = jnp.where(count < end, noisy, jax.nn.sigmoid(log_alpha))
    gate = jnp.clip(opened * (_ZETA - _GAMMA) + _GAMMA, 0, 1)
    return (w.astype(jnp.float32) * gate).astype(w.dtype)

  def pack(latents, state, *, count, seed, layout):
    out = apply(latents, state, count=count, seed=seed)
    return masking.pack_zeros(out, layout.astype(latents.w.dtype))

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, pack=pack), seed=seed,
      spec=transforms.Spec(spelling, restructures=True))


def _open_slope(log_alpha):
  """The derivative of the probability that a gate is open."""
  p = jax.nn.sigmoid(log_alpha.astype(jnp.float32) - _BETA * math.log(-_GAMMA / _ZETA))
  return p * (1 - p)
