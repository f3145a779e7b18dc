"""Masks over dense latents: the loss sees a pruned weight, the optimizer trains the whole of it.

What `straight_through`, `sr_ste` and `top_kast` share: the masks are chosen anew by `|w|` every
`every` steps, from all latents, as none of them is given up. With `every=1` each step is one with a
mask update, and its masks are those of the weights it starts from; with a larger one the ordinary
step holds no search.
"""

from typing import Any, Callable

import jax

from jaxsparse.core import masks
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def viewed(spelling: spell.Call, schedule: schedules.Schedule, pattern: patterns.Pattern,
           distribution: Callable, *, every: int, view: Callable,
           state_of: Callable | None = None,
           backward_masks: Callable | None = None) -> transforms.Transform:
  """A pruned view of dense latents, by magnitude.

  Args:
    spelling: the method's spelled form.
    schedule: sparsity over counts.
    pattern: where zeros may be.
    distribution: how sparsity is shared between weights.
    every: steps between mask updates, from count 0 on; the schedule's own are added.
    view: `(w, state) -> w`, zero where the mask is.
    state_of: `({key: scores}, layouts, entry) -> {key: state}` with a field `mask` in each; a
      `ViewState` of the best units when None.
    backward_masks: as in `Spec`.

  Raises:
    ValueError: `every` is below 1, or pattern, schedule and distribution do not fit each other.
  """
  schedules.every(every, 0, every)   # says what is wrong with it
  choose = masking.chooser(pattern, schedule, distribution)
  if state_of is None:
    def state_of(scores, layouts, entry):
      chosen = choose(scores, layouts, entry)
      return {k: masks.ViewState(mask) for k, mask in chosen.items()}

  def due(count):
    regular = count % every == 0
    return regular if schedule.when is None else regular | schedule.when.due(count)

  def states_at(ws, layouts, entry):
    return state_of({k: criteria.magnitude(w) for k, w in ws.items()}, layouts, entry)

  def init(ws, *, layouts):
    return ws, states_at(ws, layouts, 0)

  def apply(ws, states):
    return {k: view(w, states[k]) for k, w in ws.items()}

  def update(ws, states, *, layouts, count, refresh):
    if refresh is False or not ws:
      return states
    new = lambda: states_at(ws, layouts, schedule.entry(count))
    return new() if refresh else jax.lax.cond(due(count), new, lambda: states)

  spec = transforms.Spec(spelling, lambda count: bool(due(count)),
                         final_masks=masking.final_masks(pattern, schedule, distribution),
                         backward_masks=backward_masks)
  return weights.treewise(init, apply, update, masking.pack_masked(pattern), spec=spec)


def check_penalty(word: str, value: Any) -> None:
  """Raises ValueError where `value` is no number of at least zero."""
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not number or not 0 <= value < float('inf'):
    raise ValueError(f'{word} must be a finite number of at least 0, got {value!r}.')
