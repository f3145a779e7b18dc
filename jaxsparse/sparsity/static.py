"""Static sparse training: a random mask, drawn once, that training never moves.

The baseline of all dynamic methods (Evci et al., arXiv:1911.11134, section 4), and with `erk` a
strong one: Liu et al., "The Unreasonable Effectiveness of Random Pruning" (arXiv:2202.02643). The
masks are those that `rigl`, `sparse_evolution` and `snfs` of the same seed start from.
"""

from typing import Callable

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import ranking


def static(sparsity: float, *, pattern: patterns.Pattern | None = None,
           distribution: Callable = distributions.uniform, seed: int = 0) -> transforms.Transform:
  """A fixed random mask.

  Args:
    sparsity: fraction of zeros, constant; or a constant Schedule.
    pattern: where zeros may be; unstructured when None.
    distribution: `uniform` or `erk`.
    seed: of the masks.

  Raises:
    ValueError: the sparsity is outside [0, 1), not constant, or contradicts the pattern.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> _, state = jsp.static(0.75).init({'kernel': jnp.ones((4, 4))})
    >>> int(jsp.masks(state)['kernel'].sum())
    4
  """
  spelling = spell.call(static, locals())
  schedule = schedules.as_schedule(sparsity)
  if schedule.when is not None:
    raise ValueError('static keeps one sparsity; expected a number or constant(...), found '
                     f'{spell.spell_value(sparsity)}.')
  masking.check_not_pooled('static', distribution)
  return ranking.ranked(criteria.random, schedule, pattern, distribution, spelling, seed=seed)
