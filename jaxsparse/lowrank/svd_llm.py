"""SVD-LLM: the low-rank weight whose outputs, on calibration data, are nearest.

Wang et al., "SVD-LLM" (arXiv:2403.07378), section 3.1. Letters: X `[rows, R]` the inputs of a
weight W `[R, O]`, S S^T = X^T X. The singular values of S^T W are the losses of leaving out their
triples, so truncating its SVD minimizes |X (W - W')|, as reduced-rank regression does. The paper
takes S from Cholesky; any root of the Gram serves, and the symmetric one exists where data are few.
"""

from jaxsparse.core import calibration
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.lowrank import factored
from jaxsparse.lowrank import ranks
from jaxsparse.numerics import linalg


def svd_llm(rank, *, damping: float = 1e-6) -> transforms.Transform:
  """Factors each weight so that its outputs change least; needs a Gram, unlike `low_rank`.

  `quantize('int8') | svd_llm(64)` stores the factors in int8, as does their `pack`.

  Args:
    rank: an int, cut to a weight's full rank, or a fraction of it in (0, 1].
    damping: of the Gram, a fraction of its mean diagonal above zero: how much a direction counts
      that no input has.

  Returns:
    A Transform whose latents are `LowRank(u, v)`, to be trained further or not.

  Raises:
    ValueError: an argument is out of range; or, in `init`, a weight has no statistics
      `stats=calibrate(apply_fn, params, batches, gram)`, ones that do not fit or are not finite, or
      is a grouped convolution.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> fn, params = lambda params, x: x @ params['w'], {'w': jnp.diag(jnp.array([1.0, 2.0]))}
    >>> stats = jsp.calibrate(fn, params, [jnp.array([[9.0, 0.0], [0.0, 1.0]])], jsp.gram)
    >>> transform = svd_llm(1)
    >>> jsp.densify(transform.apply(*transform.init(params, stats=stats)))['w'].round(3).tolist()
    [[1.0, 0.0], [0.0, 0.0]]
  """
  ranks.check_rank(rank)
  calibration.check_damping(damping)
  if not damping:
    raise ValueError('damping must be above zero, got 0.')
  spelling = spell.call(svd_llm, locals())

  def init(w, *, stats, layout):
    gram = calibration.gram_of(stats, layout)
    if gram.ndim != w.ndim:
      raise ValueError('a grouped convolution is several matrices; exclude it with at(...).')
    root, inverse = linalg.square_roots(gram, damping)
    return factored.weighted(w, rank, lambda m: root @ m, lambda m: inverse @ m), ()

  return factored.lift(init, spelling)
