"""SNFS: sparse training that grows where the momentum of the dense gradient is large.

Dettmers and Zettlemoyer, "Sparse Networks from Scratch: Faster Training without Losing
Performance" (arXiv:1907.04840). `m <- beta m + (1 - beta) dL/dw` for every weight, active or not;
every `every` steps until `end` the `alpha / 2 (1 + cos(pi t / end))` smallest active weights of a
layer are dropped and as many inactive ones are grown by `|m|`. Layers keep their number of active
weights: the paper's redistribution between layers is left out, as in RigL's comparison with it.

The momentum is the method's own, float32, so it costs 4 bytes a weight, and reading and writing
it at every step; it is needed where the optimizer only sees the gradients of active weights.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import regrowth


class SnfsState(NamedTuple):
  """What SNFS remembers of a weight."""

  mask: jax.Array       # bool, the weight's shape; True keeps
  momentum: jax.Array   # float32, the weight's shape


def snfs(sparsity: float, *, every: int = 100, end: int = 75_000, alpha: float = 0.5,
         beta: float = 0.9, distribution: Callable = distributions.uniform,
         pattern: patterns.Pattern | None = None, seed: int = 0
         ) -> transforms.Transform:
  """Dynamic sparse training with momentum growth.

  Args:
    sparsity: fraction of zeros, constant; or a constant Schedule.
    every: steps between mask updates; an epoch in the paper.
    end: count of the last one.
    alpha: the fraction of active weights dropped at first.
    beta: of the momentum.
    distribution: `uniform` or `erk`.
    pattern: where ones may be; unstructured when None. Blocks drop and grow whole, by their mean
      scores, and keep the balance of `balanced_blocks`.
    seed: of the first, random masks.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not constant, `alpha` outside [0, 1], or `beta`
      outside [0, 1).

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.snfs(0.75, beta=0.5)
    >>> params, state = transform.init({'kernel': jnp.ones((4, 4))})
    >>> state = transform.update(params, state, grads=params, refresh=False)
    >>> float(state.weights['kernel'].momentum[0, 0])
    0.5
  """
  spelling = spell.call(snfs, locals())
  if not isinstance(beta, (int, float)) or isinstance(beta, bool) or not 0 <= beta < 1:
    raise ValueError(f'beta must be in [0, 1), got {beta!r}.')

  def observe(state, grad):
    momentum = beta * state.momentum + (1 - beta) * grad.astype(jnp.float32)
    return state._replace(momentum=momentum)

  return regrowth.regrown(
      spelling, sparsity, every=every, end=end, alpha=alpha, distribution=distribution,
      pattern=pattern, seed=seed, growth=lambda state, grad, key: jnp.abs(state.momentum),
      observe=observe,
      start=lambda mask: SnfsState(mask, jnp.zeros(mask.shape, jnp.float32)))
