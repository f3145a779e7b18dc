"""What masked methods share: how many units stay, the mask applied, the masked weight packed."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.numerics import select
from jaxsparse.sparsity import budgets
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns


def kept_of(units: int, sparsity: float) -> int:
  """Units kept of `units` at `sparsity`: `units - round(units * sparsity)`, at least one.

  Rounds half to even, in float64. JaxPruner rounds `units * (1 - sparsity)` in float32, which is
  one more or one less where the product is half an integer.

  Example:
    >>> kept_of(10, 0.9), kept_of(4, 0.99)
    (1, 1)
  """
  return max(units - round(units * sparsity), 1)


def kept_table(layouts, pattern: patterns.Pattern, schedule: schedules.Schedule,
               distribution: Callable) -> dict[str, np.ndarray]:
  """{key: kept units of a cell, before the first refresh and after each}, exact integers.

  Raises:
    ValueError: the pattern does not fit a weight, or cannot have the sparsity asked for; the
      distribution leaves a weight out, or gives it a sparsity outside [0, 1).
  """
  units = {}
  for key, layout in layouts.items():
    try:
      units[key] = pattern.units(layout)
    except ValueError as error:
      raise ValueError(f'{names.name_of(key)}: {error}') from error
  _, sparsities = schedule.table()
  per_weight = [distribution(layouts, s) for s in sparsities] if layouts else []
  for key in layouts:
    for at in per_weight:
      if key not in at:
        raise ValueError(f'{names.name_of(key)}: the distribution gave no sparsity of it; expected '
                         'one for each of its layouts.')
      schedules.check_sparsity(at[key], f'{names.name_of(key)}: its sparsity by the distribution')
  if pattern.fixed is not None and abs(schedule.final - pattern.fixed) > 1e-6:
    raise ValueError(f'{spell.spell_value(pattern)} has sparsity {pattern.fixed:g}, but '
                     f'{schedule.final:g} was asked for: conflicting targets.')
  return {key: np.asarray([kept_of(n, at[key]) for at in per_weight], np.int32)
          for key, n in units.items()}


def rankable(scores: jax.Array) -> jax.Array:
  """Scores as finite float32, NaN the lowest: so that -inf and inf are free to exclude and keep.

  A step cannot raise; a score that is not finite must not change how many weights stay.

  Example:
    >>> rankable(jnp.array([2.0, jnp.nan])).argmin().item()
    1
  """
  limit = float(jnp.finfo(jnp.float32).max)
  scores = scores.astype(jnp.float32)
  return jnp.clip(jnp.where(jnp.isnan(scores), -limit, scores), -limit, limit)


def check_distribution(distribution) -> None:
  """Raises ValueError where `distribution` is no function of layouts and a sparsity."""
  if not callable(distribution):
    raise ValueError('distribution must be uniform, erk, pooled or a function like them, got '
                     f'{distribution!r}.')


def is_pooled(distribution: Callable) -> bool:
  """Whether scores decide each weight's share, so that all weights are ranked together."""
  return (distribution in distributions.POOLED
          or isinstance(distribution, budgets.FlopsBudget))


def check_not_pooled(word: str, distribution: Callable) -> None:
  """Raises ValueError where `distribution` needs scores, which a random mask has none of."""
  if is_pooled(distribution):
    raise ValueError(f'{word} draws masks at random, so there is no score to pool by '
                     f'{_word(distribution)}; use erk.')


def _word(distribution) -> str:
  return getattr(distribution, '__name__', 'flops_budget')


def final_masks(pattern: patterns.Pattern, schedule: schedules.Schedule,
                distribution: Callable) -> Callable:
  """What `Spec.final_masks` asks for: the mask of an all-equal weight when the schedule is over."""
  def masks_of(layouts):
    tables = kept_table(layouts, pattern, schedule, distribution)
    return {k: pattern.on(layout).mask(jnp.zeros(layout.matrix_shape), int(tables[k][-1]))
            for k, layout in layouts.items()}
  return masks_of


def chooser(pattern: patterns.Pattern, schedule: schedules.Schedule,
            distribution: Callable) -> Callable:
  """`choose(scores, layouts, entry) -> {key: bool mask}`: the best units, as many as are due.

  `entry` indexes the schedule's table and may be traced. Pooled weights are ranked together.

  Raises:
    ValueError: pattern, schedule and distribution do not fit each other.
  """
  if not isinstance(pattern, patterns.Pattern):
    raise ValueError(f'pattern must be a pattern such as n_m(2, 4), got {pattern!r}.')
  check_distribution(distribution)
  shared = is_pooled(distribution)
  if shared and not pattern.entries:
    raise ValueError(f'{_word(distribution)} ranks single entries; use it with the unstructured '
                     'pattern.')
  if pattern.fixed is not None:
    kept_table({}, pattern, schedule, distribution)   # raises where the targets conflict

  def choose(scores, layouts, entry):
    if not shared:
      tables = kept_table(layouts, pattern, schedule, distribution)
      return {k: _mask_at(pattern.on(layouts[k]), s, tables[k], entry) for k, s in scores.items()}
    _, sparsities = schedule.table()
    if isinstance(distribution, budgets.FlopsBudget):
      prices = distribution.prices(layouts)
      return dict(zip(scores, budgets.budgeted_masks(
          list(scores.values()), [prices[k] for k in scores], sparsities, entry)))
    total = sum(s.size for s in scores.values())
    kept = jnp.asarray([kept_of(total, s) for s in sparsities])[entry]
    by_norm = distribution is distributions.pooled_normalized
    ranks = [_normalized(s) if by_norm else s for s in scores.values()]
    return dict(zip(scores, select.top_k_masks(ranks, kept)))

  return choose


def _mask_at(pattern, scores, table, entry):
  """The mask with `table[entry]` units a cell."""
  if not isinstance(entry, jax.Array):
    return pattern.mask(scores, int(table[entry]))
  if pattern.fixed is None:
    return pattern.mask(scores, jnp.asarray(table)[entry])
  # A group's count is one of a few, and XLA:CPU vectorizes the ranks of n:m where it is a constant.
  counts, which = np.unique(table, return_inverse=True)
  return jax.lax.switch(jnp.asarray(which)[entry],
                        [lambda s, n=int(n): pattern.mask(s, n) for n in counts], scores)


def _normalized(scores):
  """Scores over the Euclidean norm of those that are finite: the others are decided already."""
  scores = scores.astype(jnp.float32)
  norm = jnp.sqrt(jnp.where(jnp.isfinite(scores), jnp.square(scores), 0).sum())
  return scores / (norm + 1e-8)


def apply_masks(ws: dict[str, jax.Array], states: dict[str, Any]) -> dict[str, jax.Array]:
  """Masked weights; `where`, not multiply: a NaN must not survive a zero in the mask."""
  return {k: jnp.where(states[k].mask, w, 0) for k, w in ws.items()}


def pack_masked(pattern: patterns.Pattern):
  """The pack function of a masked weight under `pattern`."""
  def pack(latents, states, *, layouts):
    return {k: pattern.pack(w, states[k].mask, layouts[k].astype(w.dtype))
            for k, w in latents.items()}
  return pack


def pack_zeros(w: jax.Array, layout) -> Any:
  """`w` with the zeros it happens to have, as a bitmask where that is smaller.

  Zeros decide the size of a bitmask, so a traced weight stays as it is: a plan counts it dense.
  """
  return w if isinstance(w, jax.core.Tracer) else patterns.unstructured().pack(w, w != 0, layout)
