"""SparseGPT: one-shot pruning that mends what it breaks.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot"
(arXiv:2301.00774), algorithm 1. Letters: W `[R, O]` a weight, X `[rows, R]` its inputs,
`H = X^T X + damping mean(diag) I`, U the upper Cholesky factor of its inverse.

Rows go in blocks. In each the `W_ij^2 / U_ii^2` that are smallest are pruned; row by row the error
`E_i = W_i / U_ii` of what was pruned is made good by the rows after it, `W_k -= U_ik E_i`: at once
inside a block, for the rest of the matrix when the block is done.

Unlike their code, exactly the number asked for is pruned, whole rows of a dead input (one that was
never active) are pruned first but not beyond that number, and ties keep the lower row-major index.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import calibration
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import linalg
from jaxsparse.numerics import select
from jaxsparse.sparsity import calibrated
from jaxsparse.sparsity import patterns


def sparsegpt(sparsity: float | None = None, *, pattern: patterns.Pattern | None = None,
              block: int = 128, damping: float = 0.01) -> transforms.Transform:
  """Prunes by the curvature of each layer's output, and updates the weights that stay, once.

  `init` needs `stats=calibrate(apply_fn, params, batches, gram)`. Its params are the updated
  weights, of the dtype they had; the arithmetic is float32.

  Args:
    sparsity: the fraction of zeros; one half, or the pattern's own, when None.
    pattern: None, or `n_m`.
    block: rows whose mask is chosen together, before their updates; a multiple of the m of `n_m`,
      for which it only says how often the rest is updated. Smaller suits layers of few rows.
    damping: added to the diagonal of X^T X, as a fraction of its mean.

  Raises:
    ValueError: the sparsity is outside [0, 1) or not the pattern's, the pattern is another, `block`
      or `damping` is out of range; or, in `init`, a weight has no statistics, or ones that do not
      fit it, are not finite, or whose rank asks for more damping.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'kernel': jnp.array([[1.0], [2.0]])}
    >>> transform = jsp.sparsegpt(0.5, damping=1e-6)
    >>> same_inputs = jnp.ones((2, 2))
    >>> out = transform.apply(*transform.init(params, stats={'kernel': same_inputs}))
    >>> out['kernel'].round().tolist()
    [[0.0], [3.0]]
  """
  sparsity = calibrated.target(sparsity, pattern)
  spelling = spell.call(sparsegpt, locals())
  calibrated.check_pattern('sparsegpt', pattern)
  calibration.check_damping(damping)
  if isinstance(block, bool) or not isinstance(block, int) or block < 1:
    raise ValueError(f'block must be a positive integer, got {block!r}.')

  def init(w, *, stats, layout):
    n, m = calibrated.n_of_m(pattern, layout)
    if m and block % m:
      raise ValueError(f'block must be a multiple of m={m}, got {block}.')

    def compress(w, gram):
      kept = () if m else _kept_by_block(w.shape[-2], w.shape[-1], block, sparsity)
      return _solve(w, gram, jnp.asarray(kept, jnp.int32), damping, n=n, m=m, block=block)

    return calibration.by_group(compress, w, calibration.gram_of(stats, layout),
                               layout.matrix_shape[-1])

  cells = patterns.unstructured() if pattern is None else pattern
  return calibrated.one_shot_masks(init, cells, sparsity, spelling)


def _kept_by_block(rows: int, columns: int, block: int, sparsity: float) -> list[int]:
  """Weights kept in each block of rows; together exactly those of the whole matrix."""
  ends = [min(end, rows) * columns for end in range(block, rows + block, block)]
  kept = [size - round(size * sparsity) for size in ends]
  kept[-1] = max(kept[-1], 1)
  return np.diff([0, *kept]).tolist()


# Compiled by shape: weights of one shape in many layers share a program.
@functools.partial(jax.jit, static_argnames=('n', 'm', 'block'))
def _solve(w: jax.Array, gram: jax.Array, kept: jax.Array, damping: float, *, n: int, m: int,
           block: int) -> tuple[jax.Array, jax.Array]:
  """Algorithm 1 of the paper; the size of its program does not depend on R.

  Args:
    w: float32 `[*batch, R, O]`.
    gram: float32 `[*batch, R, R]`.
    kept: int32 `[blocks]`, entries kept in each block; read where m is 0.
    damping: of the gram, as a fraction of its mean diagonal.
    n: kept of every `m` rows.
    m: 0 for unstructured.
    block: rows in a block.

  Returns:
    The updated weights, zeros where pruned, and the bool mask, both `[*batch, R, O]`.
  """
  upper = linalg.inverse_cholesky(gram, damping)
  live = jnp.diagonal(gram, axis1=-2, axis2=-1) > 0
  run = functools.partial(_matrix, kept, n=n, m=m, block=block)
  for _ in w.shape[:-2]:
    run = jax.vmap(run)
  return run(w, upper, live)


def _matrix(kept, w, upper, live, *, n, m, block):
  rows, group = w.shape[0], m or block
  blocks = -(-rows // block)
  extra = blocks * block - rows
  # Rows that pad the last block are no input of anything, and always go first.
  w = jnp.pad(w, ((0, extra), (0, 0)))
  upper = jnp.pad(upper, (0, extra)) + jnp.diag(jnp.arange(blocks * block) >= rows)
  rank = jnp.pad(live.astype(jnp.float32), (0, extra), constant_values=-1.0)
  beyond = jnp.arange(blocks * block)

  def of_block(b, carry):
    w, mask = carry
    start = b * block
    factor = jax.lax.dynamic_slice_in_dim(upper, start, block)
    square = jax.lax.dynamic_slice_in_dim(factor, start, block, axis=1)
    ranks = jax.lax.dynamic_slice_in_dim(rank, start, block)
    part, keep, errors = _eliminate(
        jax.lax.dynamic_slice_in_dim(w, start, block), square, ranks, group,
        lambda scores: (select.n_of_m_mask(scores, n, m) if m else
                        select.top_k_mask(scores, kept[b])))
    after = jnp.where(beyond >= start + block, factor, 0)
    w = jax.lax.dynamic_update_slice_in_dim(w, part, start, 0)
    w -= jnp.einsum('ik,io->ko', after, errors, precision='highest')
    return w, jax.lax.dynamic_update_slice_in_dim(mask, keep, start, 0)

  start = w, jnp.zeros(w.shape, bool)
  w, mask = jax.lax.fori_loop(0, blocks, of_block, start)
  return w[:rows], mask[:rows]


def _eliminate(w, upper, rank, group, choose):
  """One block `[B, O]`: its pruned and updated rows, their mask, and the errors left to the rest.

  The mask of each group of rows is chosen when the rows before it are done.
  """
  diagonal = jnp.diagonal(upper)

  def of_row(i, carry):
    w, keep, errors = carry
    error = jnp.where(keep[i], 0, w[i]) / diagonal[i]
    return w - upper[i][:, None] * error[None], keep, errors.at[i].set(error)

  def of_group(g, carry):
    w, keep, errors = carry
    take = lambda x: jax.lax.dynamic_slice_in_dim(x, g * group, group)
    scores = jnp.square(take(w) / take(diagonal)[:, None])
    ranks = jnp.broadcast_to(take(rank)[:, None], scores.shape)
    # Dead inputs cost nothing, and padding less than nothing.
    chosen = choose(jnp.where(ranks > 0, scores, ranks))
    keep = jax.lax.dynamic_update_slice_in_dim(keep, chosen, g * group, 0)
    return jax.lax.fori_loop(g * group, (g + 1) * group, of_row, (w, keep, errors))

  start = w, jnp.zeros(w.shape, bool), jnp.zeros_like(w)
  w, keep, errors = jax.lax.fori_loop(0, w.shape[0] // group, of_group, start)
  return jnp.where(keep, w, 0), keep, errors
