"""Masks that follow a criterion on a schedule: what `prune` and its presets are made of."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import masks
from jaxsparse.core import names
from jaxsparse.core import schedules
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.numerics import hashing
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def ranked(criterion: Callable, schedule: schedules.Schedule, pattern: patterns.Pattern | None,
           distribution: Callable, spelling: Any, *, seed: int = 0) -> transforms.Transform:
  """Keeps the weights that score highest, as many as the schedule says.

  While sparsity rises a pruned weight scores below every other, so that a stale value does not
  bring it back only for `realign` to zero it; while it falls the kept ones stay, and the others
  come back by their score. In a compiled step, which cannot raise, a NaN score ranks lowest among
  its like and counts stay exact; `launch` stops a run whose loss is not finite.

  Args:
    criterion: `(w, *, grads, stats, seed, name) -> scores`.
    schedule: sparsity over counts.
    pattern: where zeros may be; unstructured when None.
    distribution: how sparsity is shared between weights.
    spelling: the spelled form, or None.
    seed: of criteria that draw.

  Raises:
    ValueError: pattern, schedule and distribution do not fit each other.
  """
  hashing.check_seed(seed)
  pattern = patterns.unstructured() if pattern is None else pattern
  choose = masking.chooser(pattern, schedule, distribution)
  _, sparsities = schedule.table()
  falls = np.asarray([False, *(np.diff(sparsities) < 0)])

  def score(ws, stats, grads, count=None):
    one = lambda tree, key: None if tree is None else tree.get(key)
    def of(key, w):
      offer = weights.offered(criterion, grads=one(grads, key), stats=one(stats, key),
                              seed=hashing.key_of(seed, key, count), name=names.name_of(key))
      try:
        found = offer(w)
      except ValueError as error:
        raise ValueError(f'{names.name_of(key)}: {error}') from error
      if found.shape != w.shape:
        raise ValueError(f'{names.name_of(key)}: a criterion scores each weight; expected scores '
                         f'of shape {w.shape}, found {found.shape}.')
      return found
    return {k: of(k, w) for k, w in ws.items()}

  def init(ws, *, layouts, stats, grads):
    tables = masking.kept_table(layouts, pattern, schedule, distribution)
    if all(t[0] == pattern.units(layouts[k]) for k, t in tables.items()):
      # Nothing is pruned yet, so the criterion need not be computable yet either.
      return ws, {k: masks.MaskState(jnp.ones(w.shape, bool)) for k, w in ws.items()}
    chosen = choose(_checked(score(ws, stats, grads)), layouts, 0)
    return ws, {k: masks.MaskState(mask) for k, mask in chosen.items()}

  def renew(ws, states, layouts, count, grads):
    entry = schedule.entry(count)
    scores = {k: masking.rankable(s) for k, s in score(ws, None, grads, count).items()}
    if falls.any():
      back = jnp.asarray(falls)[entry]
      ranks = {k: jnp.where(states[k].mask, jnp.where(back, jnp.inf, s),
                            jnp.where(back, s, -jnp.inf)) for k, s in scores.items()}
    else:
      ranks = {k: jnp.where(states[k].mask, s, -jnp.inf) for k, s in scores.items()}
    return {k: masks.MaskState(mask) for k, mask in choose(ranks, layouts, entry).items()}

  def update(ws, states, *, layouts, count, refresh, grads):
    if schedule.when is None or refresh is False or not ws:
      return states
    new = lambda: renew(ws, states, layouts, count, grads)
    return new() if refresh else jax.lax.cond(schedule.when.due(count), new, lambda: states)

  kind = criteria.GRADIENTS.get(criterion) if sparsities[0] else None
  spec = transforms.Spec(spelling, schedule.due, projects=True, regrows=bool(falls.any()),
                         final_masks=masking.final_masks(pattern, schedule, distribution),
                         needs=frozenset([kind] if kind else []))
  return weights.treewise(init, masking.apply_masks, update, masking.pack_masked(pattern),
                          spec=spec)


def _checked(scores):
  """The scores; a NaN among them would rank lowest without a word."""
  for key, s in scores.items():
    bad = 0 if isinstance(s, jax.core.Tracer) else int(jnp.isnan(s).sum())
    if bad:
      raise ValueError(f'{names.name_of(key)}: {bad} of {s.size} scores are NaN; expected finite '
                       'gradients and statistics.')
  return scores
