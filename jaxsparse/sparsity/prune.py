"""Pruning: a criterion, a pattern, a schedule and a distribution make a transform.

Zhu and Gupta, "To prune, or not to prune" (arXiv:1710.01878) is `magnitude(cubic(...))`. Unlike
their code, a pruned weight stays pruned while sparsity rises: its score is the lowest.
"""

from typing import Callable

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import ranking


def prune(criterion: str | Callable, *, schedule, pattern: patterns.Pattern | None = None,
          distribution: Callable = distributions.uniform, seed: int = 0) -> transforms.Transform:
  """Keeps the weights that score highest, ever fewer of them as the schedule says.

  Args:
    criterion: the name of one in `criteria`, or `(w, *, grads, stats, seed, name) -> scores`.
    schedule: a Schedule, or a sparsity from the start.
    pattern: where zeros may be; unstructured when None.
    distribution: how sparsity is shared between weights.
    seed: of criteria that draw.

  Returns:
    A Transform; its state holds a bool mask a weight.

  Raises:
    ValueError: a sparsity is outside [0, 1), or contradicts the pattern; the criterion is not
      known; (in `init`) it needs gradients and got none, or scores are NaN.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.prune(lambda w: w, schedule=0.5)
    >>> _, state = transform.init({'kernel': jnp.array([[1., -2.]])})
    >>> jsp.masks(state)['kernel'].tolist()
    [[True, False]]
  """
  criterion = criteria.as_criterion(criterion)
  known = criteria.KNOWN.get(getattr(criterion, '__name__', None)) is criterion
  arguments = {**locals(), 'criterion': criterion.__name__} if known else None
  return ranking.ranked(criterion, schedules.as_schedule(schedule), pattern, distribution,
                        spell.call(prune, arguments) if known else None, seed=seed)


def magnitude(sparsity, *, pattern: patterns.Pattern | None = None,
              distribution: Callable = distributions.uniform) -> transforms.Transform:
  """Keeps the largest weights; gradual with a schedule.

  Zhu and Gupta (arXiv:1710.01878): `magnitude(cubic(0.9, start=1_000, end=20_000, every=100))`.
  Ties keep the lower index. Sparsity 1 is an error, where JaxPruner keeps one weight.

  Args:
    sparsity: the fraction of zeros from the start, or a Schedule.
    pattern: where zeros may be; unstructured when None.
    distribution: `uniform`, `erk`, or `pooled` for one global threshold.

  Raises:
    ValueError: the sparsity is outside [0, 1), or contradicts the pattern.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params, state = jsp.magnitude(0.5).init({'kernel': jnp.array([[1., -2.]])})
    >>> jsp.magnitude(0.5).apply(params, state)['kernel'].tolist()
    [[0.0, -2.0]]
  """
  return ranking.ranked(criteria.magnitude, schedules.as_schedule(sparsity), pattern, distribution,
                        spell.call(magnitude, locals()))


def nm(n: int, m: int) -> transforms.Transform:
  """The `n` largest of every `m` consecutive weights along the reduction axis, chosen at init.

  `nm(2, 4) | lora(16)` prunes the factors, `lora(16, base=nm(2, 4))` the base.

  Raises:
    ValueError: not 0 < n <= m, or (in `init`) m does not divide a reduction axis.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params, state = jsp.nm(1, 2).init({'kernel': jnp.array([[1.], [2.]])})
    >>> jsp.nm(1, 2).apply(params, state)['kernel'].tolist()
    [[0.0], [2.0]]
  """
  pattern = patterns.n_m(n, m)
  fixed = schedules.constant(pattern.fixed)
  return ranking.ranked(criteria.magnitude, fixed, pattern, distributions.uniform,
                        spell.call(nm, locals()))
