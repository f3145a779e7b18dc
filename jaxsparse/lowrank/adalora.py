"""AdaLoRA: adapters in the form of an SVD, whose rank goes where it matters.

Zhang et al., "AdaLoRA" (arXiv:2303.10512). Letters: `w = base + s P diag(L) Q`, P `[R, rank]`, Q
`[rank, O]`; a triple is a column of P, a value of L and a row of Q. An entry x counts by |x dx|
(equation 8), smoothed, times its smoothed deviation (equations 9 to 11); the importance of a triple
is that of its value plus the means over its column and its row (equation 7). A schedule says how
many triples of all weights together stay (equation 12).

What differs: gradients of the factors follow from that of the weight, by the chain rule, without
the penalty's share; a pruned value is silent until it is chosen again, its gradient going through
to it, where the paper's is set to zero and moves on.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.lowrank import adapter as adapters
from jaxsparse.lowrank import starts
from jaxsparse.numerics import rounding
from jaxsparse.numerics import select


class AdaLora(NamedTuple):
  """Latents of AdaLoRA; also what a state keeps of each of their entries."""

  p: jax.Array        # [*batch, R, rank]
  values: jax.Array   # [*batch, 1, rank], zero at first
  q: jax.Array        # [*batch, rank, O]

  __latents__ = ('p', 'q')


class AdaLoraState(NamedTuple):
  """What an adapted weight remembers."""

  base: tuple            # as its transform holds it
  kept: jax.Array        # bool [*batch, 1, rank], triples that count
  sensitivity: AdaLora   # float32, smoothed |x dx|
  deviation: AdaLora     # float32, smoothed | |x dx| - sensitivity |

  def settled(self, latents: AdaLora) -> AdaLora:
    """The latents with zeros for what is pruned: the same weight where all triples are kept."""
    return latents._replace(values=jnp.where(self.kept, latents.values, 0))


def adalora(rank: int = 12, *, schedule: schedules.Schedule, alpha: float = 16.0,
            base: transforms.Transform | None = None,
            scaling: Callable[[float, int], float] = starts.over_rank, betas: tuple = (0.85, 0.85),
            orthogonality: float = 0.1, seed: int = 0) -> transforms.Transform:
  """Trains adapters of `rank` and prunes their least important triples, over all weights.

  `adalora(12, schedule=cubic(1 / 3, start=200, end=1000, every=10))` ends with rank 8 on average.

  Args:
    rank: at first; cut to the full rank.
    schedule: the fraction of all triples that is pruned, over counts, such as `cubic(...)`.
    alpha: as in `lora`.
    base: as in `lora`.
    scaling: as in `lora`.
    betas: of the smoothed sensitivity and of its deviation, each in [0, 1).
    orthogonality: of the penalty |P^T P - I|^2 + |Q Q^T - I|^2, which joins the gradient.
    seed: of P and Q.

  Returns:
    A Transform whose latents are `AdaLora(p, values, q)`. `update` needs `grads`.

  Raises:
    ValueError: an argument is out of range; TypeError: as `lora`.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.adalora(2, schedule=jsp.at_step(0, 0.5))
    >>> params, state = transform.init({'kernel': jnp.ones((4, 4))})
    >>> state = transform.update(params, state, grads={'kernel': jnp.ones((4, 4))})
    >>> int(state.weights['kernel'].kept.sum())
    1
  """
  spelling = spell.call(adalora, locals())
  schedule = schedules.as_schedule(schedule)
  if schedule.when is None:
    raise ValueError('schedule must say when triples are pruned, such as cubic(...) or '
                     'at_step(...): nothing tells them apart at first.')
  adapter = adapters.checked(rank, alpha, base, scaling, None, seed)
  _check(betas, orthogonality)

  def init(w, *, seed, stats, grads, name):
    *batch, rows, outputs = w.shape
    r = min(rank, rows, outputs)
    left, right = jax.random.split(seed)
    latents = AdaLora(jax.random.normal(left, (*batch, rows, r), w.dtype) / rows ** 0.5,
                      jnp.zeros((*batch, 1, r), w.dtype),
                      jax.random.normal(right, (*batch, r, outputs), w.dtype) / outputs ** 0.5)
    latents = AdaLora(*(x.astype(w.dtype) for x in latents))
    nothing = lambda: AdaLora(*(jnp.zeros(x.shape, jnp.float32) for x in latents))
    held = adapter.frozen.init(w, stats=stats, grads=grads, name=name)[1]
    return latents, AdaLoraState(held, jnp.ones((*batch, 1, r), bool), nothing(), nothing())

  def view(latents, state, base, layout):
    p = rounding.add_gradient(latents.p, orthogonality * _slope(latents.p))
    q = jnp.swapaxes(latents.q, -1, -2)
    q = jnp.swapaxes(rounding.add_gradient(q, orthogonality * _slope(q)), -1, -2)
    values = rounding.straight_through(latents.values, jnp.where(state.kept, latents.values, 0))
    return adapter.sum(p * values, q, base, layout)

  lifted = adapter.lift(init, view, spelling, seed)

  def update(latents, states, *, count, grads, refresh):
    if grads is None:
      return states
    scored = {k: _observed(x, states[k], grads[k], adapter.scale(x.p.shape[-1]), betas)
              for k, x in latents.items()}
    kept = lambda: {k: s.kept for k, s in scored.items()}

    def renew():
      _, sparsities = schedule.table()
      importance = [_importance(s) for s in scored.values()]
      total = sum(x.size for x in importance)
      table = np.asarray([total - round(total * s) for s in sparsities], np.int32)
      return dict(zip(scored, select.top_k_masks(
          importance, jnp.asarray(table)[schedule.entry(count)])))

    if refresh is False:
      chosen = kept()
    else:
      chosen = renew() if refresh else jax.lax.cond(schedule.when.due(count), renew, kept)
    return {k: s._replace(kept=chosen[k]) for k, s in scored.items()}

  followed = weights.treewise(None, None, update)
  return lifted._replace(update=followed.update, spec=lifted.spec._replace(
      due=schedule.due, regrows=False))


def _check(betas, orthogonality):
  pair = isinstance(betas, (tuple, list)) and len(betas) == 2
  for beta in betas if pair else [None]:
    if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < 1:
      raise ValueError(f'betas must be two numbers in [0, 1), got {betas!r}.')
  number = isinstance(orthogonality, (int, float)) and not isinstance(orthogonality, bool)
  if not number or not 0 <= orthogonality < float('inf'):
    raise ValueError(f'orthogonality must be a number from 0, got {orthogonality!r}.')


def _slope(p):
  """The gradient of `|P^T P - I|^2`."""
  transposed = jnp.swapaxes(p, -1, -2)
  product = transposed @ p
  return 4 * p @ (product - jnp.broadcast_to(jnp.eye(p.shape[-1], dtype=p.dtype), product.shape))


def _observed(latents, state, grad, scale, betas):
  """The state with this step's sensitivities; `grad` is that of the weight, `[*batch, R, O]`."""
  wide = AdaLora(*(x.astype(jnp.float32) for x in latents))
  seen = jnp.where(state.kept, wide.values, 0)
  right = scale * grad.astype(jnp.float32) @ jnp.swapaxes(wide.q, -1, -2)   # [*batch, R, rank]
  left = scale * jnp.swapaxes(wide.p, -1, -2) @ grad.astype(jnp.float32)    # [*batch, rank, O]
  slopes = AdaLora(right * seen, (wide.p * right).sum(-2, keepdims=True),
                   left * jnp.swapaxes(seen, -1, -2))
  now = jax.tree.map(lambda x, g: jnp.abs(x * g), wide, slopes)
  smooth = lambda beta: lambda old, new: beta * old + (1 - beta) * new
  sensitivity = jax.tree.map(smooth(betas[0]), state.sensitivity, now)
  apart = jax.tree.map(lambda x, mean: jnp.abs(x - mean), now, sensitivity)
  return state._replace(sensitivity=sensitivity,
                        deviation=jax.tree.map(smooth(betas[1]), state.deviation, apart))


def _importance(state):
  """Of each triple, `[*batch, 1, rank]`."""
  p, values, q = jax.tree.map(jnp.multiply, state.sensitivity, state.deviation)
  return values + p.mean(-2, keepdims=True) + jnp.swapaxes(q.mean(-1, keepdims=True), -1, -2)
