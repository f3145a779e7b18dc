"""ASVD: low rank with the rows of a weight counted by how large their inputs are.

Yuan et al., "ASVD" (arXiv:2312.05821), section 3.2: the SVD of S W, S diagonal with
S_i = (size of input i)^alpha, taken back by S^-1. They take the mean magnitude for size, this the
l2 norm, which `gram` and `input_norm` have.
"""

import jax.numpy as jnp

from jaxsparse.core import calibration
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.lowrank import factored
from jaxsparse.lowrank import ranks

_LEAST = 1e-4   # of the mean: an input that never was counts a little, so that S has an inverse


def asvd(rank, *, alpha: float = 0.5) -> transforms.Transform:
  """Factors each weight, rows with large inputs more exactly; `svd_llm` is nearer and dearer.

  Args:
    rank: an int, cut to a weight's full rank, or a fraction of it in (0, 1].
    alpha: how much inputs count, in [0, 1]; 0 is the plain SVD, the paper's choice is one half.

  Returns:
    A Transform whose latents are `LowRank(u, v)`, to be trained further or not.

  Raises:
    ValueError: an argument is out of range; or, in `init`, a weight has no statistics
      `stats=calibrate(apply_fn, params, batches, input_norm)` (or `gram`), or ones that do not fit
      or are not finite, or is a grouped convolution.

  Example:
    >>> import jaxsparse as jsp
    >>> params, stats = {'w': jnp.diag(jnp.array([1.0, 2.0]))}, {'w': jnp.array([9.0, 1.0])}
    >>> transform = asvd(1)
    >>> jsp.densify(transform.apply(*transform.init(params, stats=stats)))['w'].round(3).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
  """
  ranks.check_rank(rank)
  if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
    raise ValueError(f'alpha must be a number in [0, 1], got {alpha!r}.')
  spelling = spell.call(asvd, locals())

  def init(w, *, stats, layout):
    norms = calibration.norms_of(stats, layout)
    if norms.shape[-1] != 1:
      raise ValueError('a grouped convolution is several matrices; exclude it with at(...).')
    mean = norms.mean(-2, keepdims=True)
    sizes = jnp.maximum(norms / jnp.where(mean > 0, mean, 1.0), _LEAST) ** alpha
    return factored.weighted(w, rank, lambda m: m * sizes, lambda m: m / sizes), ()

  return factored.lift(init, spelling)
