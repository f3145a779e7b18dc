"""Optimal brain compression: the exact greedy pruning of each output, for small layers.

Frantar and Alistarh, "Optimal Brain Compression" (arXiv:2208.11580), algorithm 1, which is Hassibi
and Stork's optimal brain surgeon (1992) on the squared error of one layer. Letters: w `[R]` an
output column, X `[rows, R]` its inputs, `H = X^T X + damping mean(diag) I`, G its inverse.

The weight p with the smallest `w_p^2 / G_pp` is pruned, the others make its error good,
`w -= G_p w_p / G_pp`, and p leaves the inverse, `G -= G_p G_p^T / G_pp`; again until enough are
gone. It costs R^3 for each column and is the baseline that SparseGPT approximates. Every column
loses the same number, where the paper shares it by the columns' losses.
"""

import functools

import jax
import jax.numpy as jnp

from jaxsparse.core import calibration
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import linalg
from jaxsparse.sparsity import calibrated
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def optimal_brain(sparsity: float | None = None, *, pattern: patterns.Pattern | None = None,
                  damping: float = 0.01) -> transforms.Transform:
  """Prunes the weight that costs least and updates the rest, one by one, once; for small layers.

  `init` needs `stats=calibrate(apply_fn, params, batches, gram)`. Its params are the updated
  weights, of the dtype they had; the arithmetic is float32.

  Args:
    sparsity: the fraction of zeros of each output column; one half, or the pattern's own, when
      None.
    pattern: None, or `n_m`.
    damping: added to the diagonal of X^T X, as a fraction of its mean.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not the pattern's, the pattern is another, or
      `damping` is out of range; or, in `init`, a weight has no statistics, or ones that do not fit
      it, are not finite, or whose rank asks for more damping.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'kernel': jnp.array([[1.0], [2.0]])}
    >>> transform = jsp.optimal_brain(0.5, damping=1e-6)
    >>> same_inputs = jnp.ones((2, 2))
    >>> out = transform.apply(*transform.init(params, stats={'kernel': same_inputs}))
    >>> out['kernel'].round().tolist()
    [[0.0], [3.0]]
  """
  sparsity = calibrated.target(sparsity, pattern)
  spelling = spell.call(optimal_brain, locals())
  calibrated.check_pattern('optimal_brain', pattern)
  calibration.check_damping(damping)
  cells = calibrated.by_column() if pattern is None else pattern

  def init(w, *, stats, layout):
    n, m = calibrated.n_of_m(pattern, layout)
    rows = layout.matrix_shape[-2]
    pruned = rows // m * (m - n) if m else rows - masking.kept_of(rows, sparsity)
    compress = functools.partial(_solve, damping=damping, pruned=pruned, n=n, m=m)
    return calibration.by_group(compress, w, calibration.gram_of(stats, layout),
                               layout.matrix_shape[-1])

  return calibrated.one_shot_masks(init, cells, sparsity, spelling)


@functools.partial(jax.jit, static_argnames=('n', 'm'))
def _solve(w, gram, damping, pruned, *, n, m):
  upper = linalg.inverse_cholesky(gram, damping)
  live = jnp.diagonal(gram, axis1=-2, axis2=-1) > 0
  inverse = jnp.einsum('...ki,...kj->...ij', upper, upper, precision='highest')

  def matrix(w, inverse, live):
    # One column at a time: each has an inverse of its own, [R, R].
    of_column = functools.partial(_column, inverse, live, pruned, n=n, m=m)
    new, mask = jax.lax.map(of_column, w.T)
    return new.T, mask.T

  run = matrix
  for _ in w.shape[:-2]:
    run = jax.vmap(run)
  return run(w, inverse, live)


def _column(inverse, live, pruned, w, *, n, m):
  last = w.shape[0] - 1

  def open_rows(keep):
    if not m:
      return keep
    left = keep.reshape(-1, m).sum(-1)
    return keep & jnp.repeat(left > n, m)

  def prune_one(_, carry):
    w, keep, inverse = carry
    diagonal = jnp.where(keep, jnp.diagonal(inverse), 1.0)
    cost = jnp.where(live, jnp.square(w) / diagonal, 0.0)
    # Ties prune the higher row, as everywhere.
    p = last - jnp.argmin(jnp.where(open_rows(keep), cost, jnp.inf)[::-1])
    column = inverse[:, p] / diagonal[p]
    w = (w - column * w[p]).at[p].set(0.0)
    return w, keep.at[p].set(False), inverse - column[:, None] * inverse[p][None]

  start = w, jnp.ones(w.shape, bool), inverse
  w, keep, _ = jax.lax.fori_loop(0, pruned, prune_one, start)
  return jnp.where(keep, w, 0), keep
