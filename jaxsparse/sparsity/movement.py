"""Movement pruning: keep what training moves away from zero.

Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning" (arXiv:2005.07683), section 3.
The score of a weight is `S = - sum over steps of w dL/dw'`, where `w'` is the masked weight that
the loss sees, so pruned weights are scored too and may come back, with the value they had, while
the schedule lasts. That is what the paper's learned scores are under a straight-through gradient
and SGD (its equation 3), up to the learning rate, which does not change the ranking. `w` is taken
after the optimizer's step.

The scores are float32: 4 bytes a weight, read and written at every step.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


class MovementState(NamedTuple):
  """What movement pruning remembers of a weight."""

  mask: jax.Array    # bool, the weight's shape; True keeps
  score: jax.Array   # float32, the weight's shape

  __dense_latents__ = True


def movement(schedule: schedules.Schedule, *, pattern: patterns.Pattern | None = None,
             distribution: Callable = distributions.uniform) -> transforms.Transform:
  """Prunes by accumulated first-order movement, for fine-tuning.

  Args:
    schedule: sparsity over counts, such as `cubic(0.9, start=1_000, end=20_000, every=100)`; it
      starts dense, as scores need steps to gather.
    pattern: where zeros may be; unstructured when None.
    distribution: `uniform`, `erk`, or `pooled`, as in the paper's global variant.

  Raises:
    ValueError: the schedule prunes from the start, or contradicts the pattern; (in `update`) there
      are no gradients.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.movement(jsp.at_step(0, 0.5))
    >>> params, state = transform.init({'kernel': jnp.array([[1.0, 2.0]])})
    >>> state = transform.update(params, state, grads={'kernel': jnp.array([[-1.0, 1.0]])})
    >>> jsp.masks(state)['kernel'].tolist()   # 2 moves towards zero
    [[True, False]]
  """
  spelling = spell.call(movement, locals())
  schedule = schedules.as_schedule(schedule)
  if schedule.when is None or schedule.initial:
    raise ValueError('movement gathers scores before it prunes; expected a schedule that starts '
                     f'at 0, such as cubic(...), found {spell.spell_value(schedule.initial)} '
                     'from the start.')
  pattern = patterns.unstructured() if pattern is None else pattern
  choose = masking.chooser(pattern, schedule, distribution)

  def init(ws, *, layouts):
    masking.kept_table(layouts, pattern, schedule, distribution)   # the pattern fits, or raises
    return ws, {k: MovementState(jnp.ones(w.shape, bool), jnp.zeros(w.shape, jnp.float32))
                for k, w in ws.items()}

  def update(ws, states, *, layouts, count, grads, refresh):
    if not ws:
      return states
    if grads is None:
      raise ValueError('movement scores by gradients; expected update(..., '
                       'grads=effective_grads).')
    scores = {k: states[k].score + criteria.movement(w, grads=grads[k]) for k, w in ws.items()}
    kept = {k: state.mask for k, state in states.items()}
    if refresh is not False:
      renew = lambda: choose(scores, layouts, schedule.entry(count))
      kept = renew() if refresh else jax.lax.cond(schedule.when.due(count), renew, lambda: kept)
    return {k: MovementState(kept[k], scores[k]) for k in ws}

  spec = transforms.Spec(spelling, schedule.due, final_masks=masking.final_masks(
      pattern, schedule, distribution))
  return weights.treewise(init, masking.apply_masks, update, masking.pack_masked(pattern),
                          spec=spec)
