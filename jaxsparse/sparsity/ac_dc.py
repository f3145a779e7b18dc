"""AC/DC: dense and compressed phases by turns, one run that ends in a sparse model.

Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks"
(arXiv:2106.12379), algorithm 1. A dense warm-up; then at the start of a compressed phase the
largest weights are chosen and only they train; at the start of a dense phase the others come back,
from zero and with zero moments (`realign`; the paper resets the momentum of all weights there). The
last phase is compressed, from `end` on.
"""

from typing import Callable

from jaxsparse.core import rounds
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import ranking


def ac_dc(sparsity: float, *, start: int = 10_000, every: int = 5_000, end: int = 85_000,
          pattern: patterns.Pattern | None = None,
          distribution: Callable = distributions.uniform) -> transforms.Transform:
  """Alternating compressed and decompressed training.

  The defaults are the paper's, for 100 epochs of 1,000 steps.

  Args:
    sparsity: fraction of zeros of the compressed phases.
    start: count at which the dense warm-up ends.
    every: steps of a phase.
    end: count from which the weights stay compressed.
    pattern: where zeros may be; unstructured when None.
    distribution: `uniform`, `erk`, or `pooled`, as in the paper's global variant.

  Raises:
    ValueError: the sparsity is outside [0, 1), or contradicts the pattern; or the counts are not
      ordered.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.ac_dc(0.75, start=1, every=1, end=3)
    >>> params, state = transform.init({'kernel': jnp.ones((2, 2))})
    >>> kept = []
    >>> for count in range(4):
    ...   state = transform.update(params, state)
    ...   kept.append(int(jsp.masks(state)['kernel'].sum()))
    >>> kept
    [4, 1, 4, 1]
  """
  spelling = spell.call(ac_dc, locals())
  schedule = rounds.alternating(sparsity, start=start, every=every, end=end)
  return ranking.ranked(criteria.magnitude, schedule, pattern, distribution, spelling)
