"""Pruning: a criterion, a pattern, a schedule and a distribution make a transform.

Zhu and Gupta, "To prune, or not to prune" (arXiv:1710.01878) is `magnitude(cubic(...))`. Unlike
their code, a pruned weight stays pruned while sparsity rises: its score is the lowest.
"""

from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import masks
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.numerics import select
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def prune(criterion: Callable, *, schedule, pattern: patterns.Pattern | None = None,
          distribution: Callable = distributions.uniform) -> transforms.Transform:
  """Keeps the weights that score highest, ever fewer of them as the schedule says.

  Args:
    criterion: `(w, *, grads, stats) -> scores`, from `criteria` or your own.
    schedule: a Schedule, or a sparsity from the start.
    pattern: where zeros may be; unstructured when None.
    distribution: how sparsity is shared between weights.

  Returns:
    A Transform; its state holds a bool mask a weight.

  Raises:
    ValueError: a sparsity is outside [0, 1), or contradicts the pattern.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.prune(lambda w: w, schedule=0.5)
    >>> _, state = transform.init({'kernel': jnp.array([[1., -2.]])})
    >>> jsp.masks(state)['kernel'].tolist()
    [[True, False]]
  """
  return _prune(criterion, schedules.as_schedule(schedule),
                patterns.unstructured() if pattern is None else pattern, distribution, None)


def magnitude(sparsity, *, pattern: patterns.Pattern | None = None,
              distribution: Callable = distributions.uniform) -> transforms.Transform:
  """Keeps the largest weights; gradual with a schedule.

  Zhu and Gupta (arXiv:1710.01878): `magnitude(cubic(0.9, start=1_000, end=20_000, every=100))`.

  Args:
    sparsity: the fraction of zeros from the start, or a Schedule.
    pattern: where zeros may be; unstructured when None.
    distribution: `uniform`, `erk`, or `pooled` for one global threshold.

  Raises:
    ValueError: the sparsity is outside [0, 1), or contradicts the pattern.

  Example:
    >>> import jaxsparse as jsp
    >>> params, state = jsp.magnitude(0.5).init({'kernel': jnp.array([[1., -2.]])})
    >>> jsp.magnitude(0.5).apply(params, state)['kernel'].tolist()
    [[0.0, -2.0]]
  """
  return _prune(criteria.magnitude, schedules.as_schedule(sparsity),
                patterns.unstructured() if pattern is None else pattern, distribution,
                spell.call(magnitude, locals()))


def nm(n: int, m: int) -> transforms.Transform:
  """The `n` largest of every `m` consecutive weights along the reduction axis, chosen at init.

  `nm(2, 4) | lora(16)` prunes the factors, `lora(16, base=nm(2, 4))` the base.

  Raises:
    ValueError: not 0 < n <= m, or (in `init`) m does not divide a reduction axis.

  Example:
    >>> import jaxsparse as jsp
    >>> params, state = jsp.nm(1, 2).init({'kernel': jnp.array([[1.], [2.]])})
    >>> jsp.nm(1, 2).apply(params, state)['kernel'].tolist()
    [[0.0], [2.0]]
  """
  pattern = patterns.n_m(n, m)
  fixed = schedules.constant(pattern.fixed)
  return _prune(criteria.magnitude, fixed, pattern, distributions.uniform,
                spell.call(nm, locals()))


def _prune(criterion, schedule, pattern, distribution, spelling):
  if not isinstance(pattern, patterns.Pattern):
    raise ValueError(f'pattern must be a pattern such as n_m(2, 4), got {pattern!r}.')
  masking.check_distribution(distribution)
  pooled = distribution is distributions.pooled
  if pooled and not pattern.entries:
    raise ValueError('pooled ranks single entries; use it with the unstructured pattern.')
  if pattern.fixed is not None:
    masking.kept_table({}, pattern, schedule, distribution)   # raises where the targets conflict

  def choose(scores, tables, entry):
    if not pooled:
      return {k: masks.MaskState(pattern.mask(s, jnp.asarray(tables[k])[entry]))
              for k, s in scores.items()}
    total = np.asarray(sum(s.size for s in scores.values()))
    _, sparsities = schedule.table()
    kept = jnp.asarray([masking.kept_of(int(total), s) for s in sparsities])[entry]
    chosen = select.top_k_masks(list(scores.values()), kept)
    return dict(zip(scores, map(masks.MaskState, chosen)))

  def score(ws, stats, grads):
    one = lambda tree, key: None if tree is None else tree.get(key)
    return {k: weights.offered(criterion, grads=one(grads, k), stats=one(stats, k))(w)
            for k, w in ws.items()}

  def init(ws, *, layouts, stats, grads):
    tables = masking.kept_table(layouts, pattern, schedule, distribution)
    if all((t[0] == pattern.units(layouts[k])) for k, t in tables.items()):
      # Nothing is pruned yet, so the criterion need not be computable yet either.
      return ws, {k: masks.MaskState(jnp.ones(w.shape, bool)) for k, w in ws.items()}
    return ws, choose(score(ws, stats, grads), tables, 0)

  def apply(ws, states):
    return {k: masking.apply_mask(w, states[k]) for k, w in ws.items()}

  def update(ws, states, *, layouts, count, refresh, grads):
    if schedule.when is None or refresh is False or not ws:
      return states
    def renew():
      # A pruned weight scores below every other: it comes back only when sparsity falls.
      scores = {k: jnp.where(states[k].mask, s, -jnp.inf)
                for k, s in score(ws, None, grads).items()}
      return choose(scores, masking.kept_table(layouts, pattern, schedule, distribution),
                    schedule.entry(count))
    if refresh:
      return renew()
    return jax.lax.cond(schedule.when.due(count), renew, lambda: states)

  spec = transforms.Spec(spelling, schedule.due, final_masks=masking.final_masks(
      pattern, schedule, distribution))
  return weights.treewise(init, apply, update, masking.pack_masked(pattern), spec=spec)
