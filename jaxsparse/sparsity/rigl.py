"""RigL: sparse training that drops small weights and grows where the gradient is large.

Evci et al., "Rigging the Lottery: Making All Tickets Winners" (arXiv:1911.11134), algorithm 1.
Every `every` steps until `end`, of the A active weights of a layer the
`alpha / 2 (1 + cos(pi t / end)) A` smallest are dropped and as many inactive ones are grown by
`|dL/dw|`, so the number of active weights never changes. A grown weight starts at zero, as do its
moments (`realign`). As in the paper, one just dropped competes for growth, and keeps its value when
it wins.
"""

from typing import Callable

import jax.numpy as jnp

from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import regrowth


def rigl(sparsity: float, *, every: int = 100, end: int = 75_000, alpha: float = 0.3,
         distribution: Callable = distributions.uniform,
         pattern: patterns.Pattern | None = None, seed: int = 0
         ) -> transforms.Transform:
  """Dynamic sparse training with dense-gradient growth.

  Masks move after the optimizer's step, which JaxPruner skips there; and also at `end`, where it
  moves them only at multiples of its interval.

  Args:
    sparsity: fraction of zeros, constant; or a constant Schedule.
    every: steps between mask updates.
    end: count of the last one; three quarters of training in the paper.
    alpha: the fraction of active weights dropped at first.
    distribution: `uniform` or `erk`.
    pattern: where ones may be; unstructured when None. Blocks drop and grow whole, by their mean
      scores, and keep the balance of `balanced_blocks`.
    seed: of the first, random masks.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not constant, or `alpha` outside [0, 1].

  Example:
    >>> import jaxsparse as jsp
    >>> _, state = jsp.rigl(0.75, every=10, end=100).init({'kernel': jnp.ones((4, 4))})
    >>> int(jsp.masks(state)['kernel'].sum())
    4
  """
  return regrowth.regrown(
      spell.call(rigl, locals()), sparsity, every=every, end=end, alpha=alpha,
      distribution=distribution, pattern=pattern, seed=seed,
      growth=lambda state, grad, key: jnp.abs(grad).astype(jnp.float32))
