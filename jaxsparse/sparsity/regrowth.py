"""Sparse training at one sparsity: drop the smallest active weights, grow as many others.

What RigL, SET and SNFS share; they differ in the score that inactive weights grow by and in the
fraction dropped. A grown weight starts at zero, as do its moments (`realign`). One just dropped
competes for growth, and keeps its value when it wins.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from jaxsparse.core import masks
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.numerics import hashing
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def cosine_fraction(alpha: float, end: int) -> Callable:
  """`count -> alpha / 2 (1 + cos(pi count / end))`: less and less is dropped."""
  return lambda count: alpha / 2 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / end, 1.0)))


def regrown(spelling: spell.Call, sparsity: Any, *, every: int, end: int, alpha: float,
            distribution: Callable, seed: int, growth: Callable,
            pattern: patterns.Pattern | None = None, fraction: Callable | None = None,
            gradients: bool = True,
            start: Callable = masks.MaskState,
            observe: Callable | None = None) -> transforms.Transform:
  """Random masks that move every `every` steps until `end`, with their number of ones fixed.

  Args:
    spelling: the method's spelled form; its name is in the errors.
    sparsity: fraction of zeros, constant; or a constant Schedule.
    every: steps between mask updates.
    end: count of the last one.
    alpha: the fraction of active weights dropped at first.
    distribution: `uniform` or `erk`.
    seed: of the first masks and of what `growth` draws.
    growth: `(state, grad, key) -> scores`, larger is grown.
    pattern: where ones may be; unstructured when None. Its units drop and grow whole.
    fraction: `count -> fraction dropped`; `cosine_fraction(alpha, end)` when None.
    gradients: whether `growth` or `observe` needs them.
    start: `mask -> state`, a NamedTuple with a field `mask`.
    observe: `(state, grad) -> state`, at every step.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not constant, or `alpha` outside [0, 1].
  """
  word = spelling.name
  schedule = schedules.as_schedule(sparsity)
  if schedule.when is not None:
    raise ValueError(f'{word} keeps one sparsity; expected a number or constant(...), found '
                     f'{spell.spell_value(sparsity)}.')
  check_alpha(alpha)
  masking.check_distribution(distribution)
  masking.check_not_pooled(word, distribution)
  hashing.check_seed(seed)
  schedules.every(every, 0, end)   # says what is wrong with either
  when = schedules.every(every, every, max(end, every))
  fraction = cosine_fraction(alpha, end) if fraction is None else fraction
  pattern = patterns.unstructured() if pattern is None else pattern
  if not isinstance(pattern, patterns.Pattern):
    raise ValueError(f'pattern must be a pattern such as balanced_blocks(32, 32), got {pattern!r}.')

  def active(layouts):
    table = masking.kept_table(layouts, pattern, schedule, distribution)
    return {k: int(kept[0]) for k, kept in table.items()}

  def init(ws, *, layouts):
    kept = active(layouts)
    draw = lambda k, w: criteria.random(w, seed=hashing.key_of(seed, k))
    return ws, {k: start(pattern.on(layouts[k]).mask(draw(k, w), kept[k])) for k, w in ws.items()}

  def update(ws, states, *, layouts, count, grads, refresh):
    if not ws or (refresh is False and observe is None):
      return states
    if gradients and grads is None:
      raise ValueError(f'{word} grows by gradients; expected update(..., grads=effective_grads).')
    grads = dict.fromkeys(ws) if grads is None else grads
    if observe is not None:
      states = {k: observe(states[k], grads[k]) for k in ws}
    if refresh is False:
      return states
    kept = active(layouts)

    def renew():
      share = fraction(count)
      def moved(k, w):
        scores = growth(states[k], grads[k], hashing.key_of(seed, k, count))
        mask = drop_and_grow(w, states[k].mask, scores, kept[k], share, pattern, layouts[k])
        return states[k]._replace(mask=mask)
      return {k: moved(k, w) for k, w in ws.items()}

    return renew() if refresh else jax.lax.cond(when.due(count), renew, lambda: states)

  spec = transforms.Spec(spelling, when.due, projects=True, final_masks=masking.final_masks(
      pattern, schedule, distribution))
  return weights.treewise(init, masking.apply_masks, update, masking.pack_masked(pattern),
                          spec=spec)


def check_alpha(alpha: Any) -> None:
  """Raises ValueError where `alpha` is no fraction."""
  number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
  if not number or not 0 <= alpha <= 1:
    raise ValueError(f'alpha must be in [0, 1], got {alpha!r}.')


def drop_and_grow(w: jax.Array, mask: jax.Array, scores: jax.Array, active: int,
                  fraction: jax.Array, pattern: patterns.Pattern | None = None,
                  layout: Any = None) -> jax.Array:
  """The mask without its `fraction` smallest units and with as many that score highest.

  Ties go to the lower index. A NaN weight is dropped first and a NaN score grown last; the number
  of ones is the same whatever the values. JaxPruner keeps `round(active (1 - fraction))`, at
  least one, where the fraction here is rounded, and may be all. A balanced pattern drops what is
  smallest in the whole matrix and grows what restores its balance, which may cost a survivor.

  Args:
    w: `[*batch, R, O]`; each matrix moves by itself.
    mask: bool, `active` units a cell of the pattern.
    scores: of growth, larger is grown.
    active: units of a cell, before and after.
    fraction: of them dropped, rounded to an integer half to even.
    pattern: of the mask; unstructured when None.
    layout: of the weight, which a pattern may ask for.

  Returns:
    The new mask.
  """
  pattern = patterns.unstructured() if pattern is None else pattern.on(layout)
  loose, cells = (pattern, 1) if pattern.loose is None else pattern.loose(layout)
  dropped = jnp.round(fraction * (active * cells)).astype(jnp.int32)
  survives = loose.mask(
      jnp.where(mask, masking.rankable(jnp.abs(w)), -jnp.inf), active * cells - dropped)
  if pattern.entries:
    grown = pattern.mask(jnp.where(survives, -jnp.inf, masking.rankable(scores)), dropped)
    return survives | grown
  return pattern.mask(jnp.where(survives, jnp.inf, masking.rankable(scores)), active)
