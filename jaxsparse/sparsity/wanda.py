"""Wanda: pruning by weights and activations, without an update of the weights.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models"
(arXiv:2306.11695), equation 1. Letters: W `[R, O]` a weight, X `[rows, R]` its inputs.
The score of a weight is `|W_ij| ||X_i||_2`, compared inside each output j. Unlike their code, which
rounds down, `round(R sparsity)` weights of a column go, and ties keep the lower row.
"""

from jaxsparse.core import calibration
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.sparsity import calibrated
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def wanda(sparsity: float | None = None, *,
          pattern: patterns.Pattern | None = None) -> transforms.Transform:
  """Keeps the weights with the largest `|weight| x norm of its input`, once.

  `init` needs `stats=calibrate(apply_fn, params, batches, input_norm)`; `gram` will do too.

  Args:
    sparsity: the fraction of zeros; one half, or the pattern's own, when None.
    pattern: None compares inside each output column, as the paper does; `n_m` inside each group of
      a column; `unstructured()`, `block` and `channel` over the whole matrix.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not the pattern's; or, in `init`, a weight has no
      statistics, or ones that do not fit it or are not finite.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params = {'kernel': jnp.array([[3.0], [2.0]])}
    >>> transform = jsp.wanda(0.5)
    >>> stats = jsp.calibrate(lambda p, x: x @ p['kernel'], params, [jnp.array([[1.0, 9.0]])],
    ...                       jsp.input_norm)
    >>> transform.apply(*transform.init(params, stats=stats))['kernel'].tolist()
    [[0.0], [2.0]]
  """
  sparsity = calibrated.target(sparsity, pattern)
  spelling = spell.call(wanda, locals())
  cells = calibrated.by_column() if pattern is None else pattern

  def init(w, *, stats, layout):
    kept = masking.kept_of(cells.units(layout), sparsity)
    scores = criteria.magnitude(w) * calibration.norms_of(stats, layout)
    return w, cells.on(layout).mask(scores, kept)

  return calibrated.one_shot_masks(init, cells, sparsity, spelling)
