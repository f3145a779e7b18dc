"""SET: sparse training that drops small weights and grows others at random.

Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity
inspired by network science" (arXiv:1707.04780). Every `every` steps until `end`, of the active
weights of a layer the fraction `alpha` closest to zero is dropped and as many inactive ones are
grown, chosen uniformly. The paper drops the smallest positive and the largest negative weights,
`alpha` of each; here they are ranked together by `|w|`, as in RigL's comparison with it. Grown
weights start at zero, where the paper draws them. A new random number is drawn for each weight,
step and seed, so one just dropped may be grown again at once.
"""

from typing import Callable

from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import regrowth


def sparse_evolution(sparsity: float, *, every: int = 100, end: int = 75_000, alpha: float = 0.3,
                     distribution: Callable = distributions.uniform,
                     pattern: patterns.Pattern | None = None, seed: int = 0
                     ) -> transforms.Transform:
  """SET, sparse evolutionary training: growth at random, no dense gradient needed.

  Args:
    sparsity: fraction of zeros, constant; or a constant Schedule.
    every: steps between mask updates; an epoch in the paper.
    end: count of the last one.
    alpha: the fraction of active weights dropped each time; the paper's zeta.
    distribution: `uniform` or `erk`.
    pattern: where ones may be; unstructured when None. Blocks drop and grow whole, by their mean
      scores, and keep the balance of `balanced_blocks`.
    seed: of the first masks and of growth.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not constant, or `alpha` outside [0, 1].

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.sparse_evolution(0.75, every=10, end=100)
    >>> params, state = transform.init({'kernel': jnp.ones((4, 4))})
    >>> int(jsp.masks(transform.update(params, state, refresh=True))['kernel'].sum())
    4
  """
  return regrowth.regrown(
      spell.call(sparse_evolution, locals()), sparsity, every=every, end=end, alpha=alpha,
      distribution=distribution, pattern=pattern, seed=seed, fraction=lambda count: alpha,
      gradients=False,
      growth=lambda state, grad, key: criteria.random(state.mask, seed=key))
