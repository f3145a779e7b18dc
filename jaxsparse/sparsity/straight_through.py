"""STE pruning: forward the largest weights, backward a gradient for all of them.

Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons" (arXiv:1308.3432);
with `pattern=n_m(2, 4)` it is the baseline that Zhou et al., "Learning N:M Fine-grained Structured
Sparse Neural Networks From Scratch" (arXiv:2102.04010), section 3, improve on with `sr_ste`. The
gradient of the masked weight goes to the dense one unchanged, so a pruned weight keeps training and
comes back with its value as soon as it is among the largest.
"""

from typing import Callable

import jax.numpy as jnp

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import rounding
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import views


def straight_through(sparsity, *, pattern: patterns.Pattern | None = None,
                     distribution: Callable = distributions.uniform,
                     every: int = 1) -> transforms.Transform:
  """Magnitude masks in the forward pass, dense gradients in the backward pass.

  Args:
    sparsity: the fraction of zeros from the start, or a Schedule.
    pattern: where zeros may be; unstructured when None.
    distribution: `uniform`, `erk`, or `pooled` for one global threshold.
    every: steps between mask updates. At 1, the paper's, every step searches its masks; a larger
      one saves that.

  Raises:
    ValueError: the sparsity is outside [0, 1), or contradicts the pattern; `every` is below 1.

  Example:
    >>> import jax, jaxsparse as jsp
    >>> transform = jsp.straight_through(0.5)
    >>> params, state = transform.init({'kernel': jnp.array([[1.0, -2.0]])})
    >>> transform.apply(params, state)['kernel'].tolist()
    [[0.0, -2.0]]
    >>> jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(params)['kernel'].tolist()
    [[1.0, 1.0]]
  """
  spelling = spell.call(straight_through, locals())
  view = lambda w, state: rounding.straight_through(w, jnp.where(state.mask, w, 0))
  return views.viewed(spelling, schedules.as_schedule(sparsity),
                      patterns.unstructured() if pattern is None else pattern, distribution,
                      every=every, view=view)
