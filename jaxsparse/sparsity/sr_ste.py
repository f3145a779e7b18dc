"""SR-STE: N:M sparse training with dense gradients, and pruned weights drawn towards zero.

Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch"
(arXiv:2102.04010), equation 9: forward the `n` largest of every `m` weights along the reduction
axis; the dense weight gets the gradient of the masked one plus `decay (1 - mask) w`, so that
pruned weights shrink and masks settle. The term is a derivative inside the view, so it is there
whatever the optimizer and the loss.
"""

import jax.numpy as jnp

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import rounding
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import views


def sr_ste(n: int, m: int, *, decay: float = 2e-4, every: int = 1) -> transforms.Transform:
  """Sparse-refined straight-through training of N:M weights.

  Args:
    n: kept in each group.
    m: group size.
    decay: the paper's lambda, on pruned weights.
    every: steps between mask updates; 1 in the paper.

  Raises:
    ValueError: not 0 < n <= m, `decay` is negative, `every` is below 1; or (in `init`) m does not
      divide a reduction axis.

  Example:
    >>> import jax, jaxsparse as jsp
    >>> transform = jsp.sr_ste(1, 2, decay=0.5)
    >>> params, state = transform.init({'kernel': jnp.array([[1.0], [-2.0]])})
    >>> jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(params)['kernel'].tolist()
    [[1.5], [1.0]]
  """
  spelling = spell.call(sr_ste, locals())
  pattern = patterns.n_m(n, m)
  views.check_penalty('decay', decay)

  def view(w, state):
    trained = rounding.add_gradient(w, jnp.where(state.mask, 0, decay * w))
    return rounding.straight_through(trained, jnp.where(state.mask, w, 0))

  return views.viewed(spelling, schedules.constant(pattern.fixed), pattern, distributions.uniform,
                      every=every, view=view)
