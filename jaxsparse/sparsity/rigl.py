"""RigL: sparse training that drops small weights and grows where the gradient is large.

Evci et al., "Rigging the Lottery: Making All Tickets Winners" (arXiv:1911.11134), algorithm 1.
Every `every` steps until `end`, of the A active weights of a layer the
`alpha / 2 (1 + cos(pi t / end)) A` smallest are dropped and as many inactive ones are grown by
`|dL/dw|`, so the number of active weights never changes. A grown weight starts at zero, as do its
moments (`realign`). As in the paper, one just dropped competes for growth, and keeps its value when
it wins.
"""

from typing import Callable

import jax
import jax.numpy as jnp

from jaxsparse.core import masks
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.numerics import hashing
from jaxsparse.numerics import select
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def rigl(sparsity: float, *, every: int = 100, end: int = 75_000, alpha: float = 0.3,
         distribution: Callable = distributions.uniform, seed: int = 0) -> transforms.Transform:
  """Dynamic sparse training with dense-gradient growth.

  Args:
    sparsity: fraction of zeros, constant; or a constant Schedule.
    every: steps between mask updates.
    end: count of the last one; three quarters of training in the paper.
    alpha: the fraction of active weights dropped at first.
    distribution: `uniform` or `erk`.
    seed: of the first, random masks.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not constant, or `alpha` outside [0, 1].

  Example:
    >>> import jaxsparse as jsp
    >>> _, state = jsp.rigl(0.75, every=10, end=100).init({'kernel': jnp.ones((4, 4))})
    >>> int(jsp.masks(state)['kernel'].sum())
    4
  """
  spelling = spell.call(rigl, locals())
  schedule = schedules.as_schedule(sparsity)
  if schedule.when is not None:
    raise ValueError('rigl keeps one sparsity; expected a number or constant(...), found '
                     f'{spell.spell_value(sparsity)}.')
  if not 0 <= alpha <= 1:
    raise ValueError(f'alpha must be in [0, 1], got {alpha!r}.')
  masking.check_distribution(distribution)
  if distribution is distributions.pooled:
    raise ValueError('rigl draws masks at random, so there is no score to pool; use erk.')
  hashing.check_seed(seed)
  schedules.every(every, 0, end)   # says what is wrong with either
  when = schedules.every(every, every, max(end, every))
  pattern = patterns.unstructured()

  def active(layouts):
    table = masking.kept_table(layouts, pattern, schedule, distribution)
    return {k: int(kept[0]) for k, kept in table.items()}

  def init(ws, *, layouts):
    kept = active(layouts)
    draw = lambda k, w: jax.random.uniform(hashing.key_of(seed, k), w.shape)
    return ws, {k: masks.MaskState(pattern.mask(draw(k, w), kept[k])) for k, w in ws.items()}

  def apply(ws, states):
    return {k: masking.apply_mask(w, states[k]) for k, w in ws.items()}

  def update(ws, states, *, layouts, count, grads, refresh):
    if refresh is False or not ws:
      return states
    if grads is None:
      raise ValueError('rigl grows by gradients; expected update(..., grads=effective_grads).')
    kept = active(layouts)

    def renew():
      fraction = alpha / 2 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / end, 1.0)))
      return {k: _drop_and_grow(w, states[k].mask, grads[k], kept[k], fraction)
              for k, w in ws.items()}

    if refresh:
      return renew()
    return jax.lax.cond(when.due(count), renew, lambda: states)

  spec = transforms.Spec(spelling, when.due, final_masks=masking.final_masks(
      pattern, schedule, distribution))
  return weights.treewise(init, apply, update, masking.pack_masked(pattern), spec=spec)


def _drop_and_grow(w, mask, grad, active: int, fraction):
  dropped = jnp.round(fraction * active).astype(jnp.int32)
  matrix = (-2, -1)
  survives = select.top_k_mask(
      jnp.where(mask, jnp.abs(w).astype(jnp.float32), -jnp.inf), active - dropped, axes=matrix)
  grown = select.top_k_mask(
      jnp.where(survives, -jnp.inf, jnp.abs(grad).astype(jnp.float32)), dropped, axes=matrix)
  return masks.MaskState(survives | grown)
