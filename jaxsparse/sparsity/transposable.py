"""N:M masks that stay N:M when the weight is transposed, for sparse backward products.

Hubara et al., "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M
Transposable Masks" (arXiv:2102.08124). Every m x m block keeps exactly n entries of each row and
of each column. Up to m = 4 the best of all such masks is found by trying them all (90 for 2:4).
Above, where the paper solves a flow or a greedy 2-approximation, masks start on a diagonal band
and swap two entries for two as long as that keeps more: a local optimum that is always exactly
n a row and a column, which the greedy rule does not promise.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import spelling as spell
from jaxsparse.sparsity import patterns

_EXHAUSTIVE = 4   # 139 masks in all at m = 4, but 7,243 at m = 5


def transposable(n: int, m: int) -> patterns.Pattern:
  """Exactly `n` of every `m` along both axes of each m x m block.

  Ties go to the mask that comes first when masks are compared row by row (m <= 4). Stored as
  `n_m` is.

  Raises:
    ValueError: not 0 < n <= m; or, in use, m divides the reduction or output axis not.

  Example:
    >>> transposable(1, 2).mask(jnp.array([[5.0, 4.0], [4.0, 0.0]]), 1).astype(int).tolist()
    [[0, 1], [1, 0]]
  """
  spelling = spell.call(transposable, locals())
  along_rows = patterns.n_m(n, m)

  def units(layout):
    columns = layout.matrix_shape[-1]
    if columns % m:
      raise ValueError(f'the output axis of size {columns} (shape {layout.shape}) is not divisible '
                       f'by m={m}, as a transposable mask needs: exclude it with at(...).')
    return along_rows.units(layout)

  return along_rows._replace(units=units, spelling=spelling,
                             mask=lambda scores, kept: _mask(scores, kept, m))


@functools.partial(jax.jit, static_argnames='m')
def _mask(scores: jax.Array, kept, m: int) -> jax.Array:
  """The mask of `transposable`.

  Args:
    scores: `[..., R, O]`, m dividing both; infinite ones win or lose before any sum is compared.
    kept: entries kept of each row and column of a block, 1 to m; may be traced.
    m: block size.

  Returns:
    A bool mask of the shape of `scores`.
  """
  *batch, r, o = scores.shape
  blocks = scores.astype(jnp.float32).reshape(*batch, r // m, m, o // m, m)
  blocks = _finite(jnp.moveaxis(blocks, -2, -3))
  chosen = _best(blocks, kept) if m <= _EXHAUSTIVE else _swapped(blocks, kept)
  return jnp.moveaxis(chosen, -3, -2).reshape(scores.shape)


def _finite(blocks):
  """Infinities as scores that no sum over the others of a block outweighs; NaN as the lowest."""
  finite = jnp.isfinite(blocks)
  span = 2 * jnp.where(finite, jnp.abs(blocks), 0).sum((-2, -1), keepdims=True) + 1
  return jnp.where(finite, blocks, jnp.where(blocks == jnp.inf, span, -span))


def _all_masks(m: int) -> tuple[np.ndarray, np.ndarray]:
  """Every m x m mask with as many ones in each row and column, and how many those are."""
  found = []
  for k in range(1, m + 1):
    rows = [row for row in itertools.product((1, 0), repeat=m) if sum(row) == k]
    found += [mask for mask in itertools.product(rows, repeat=m)
              if all(sum(column) == k for column in zip(*mask))]
  masks = np.asarray(found, np.float32)
  return masks, masks[:, 0].sum(-1).astype(np.int32)


def _best(blocks, kept):
  masks, ones = _all_masks(blocks.shape[-1])
  sums = jnp.einsum('...rc,krc->...k', blocks, masks, precision='highest')
  best = jnp.argmax(jnp.where(ones == jnp.asarray(kept), sums, -jnp.inf), axis=-1)
  return jnp.asarray(masks, bool)[best]


def _swapped(blocks, kept):
  """From a diagonal band, the best swap of each block until none keeps more.

  A swap takes (i, a) and (j, b) from the mask and adds (j, a) and (i, b), so no row or column
  changes its count, and any mask can be reached from any other (Ryser 1957).
  """
  m = blocks.shape[-1]
  row, column = np.arange(m)[:, None], np.arange(m)[None]
  band = jnp.asarray((column - row) % m) < jnp.asarray(kept)
  mask = jnp.broadcast_to(band, blocks.shape)
  noise = 1e-6 * jnp.abs(blocks).sum((-2, -1))   # a gain below rounding could swap for ever

  def best_swap(mask):
    # gain[i, j]: moving one entry from row i to row j; the swap moves one back as well.
    can = mask[..., :, None, :] & ~mask[..., None, :, :]
    moved = jnp.where(can, blocks[..., None, :, :] - blocks[..., :, None, :], -jnp.inf)
    gain, where = moved.max(-1), moved.argmax(-1)
    both = gain + jnp.swapaxes(gain, -1, -2)
    flat = both.reshape(*both.shape[:-2], m * m)
    return flat.max(-1), flat.argmax(-1), where.reshape(flat.shape)

  def body(carry):
    mask, _, steps = carry
    gain, pair, where = best_swap(mask)
    at = lambda index: jnp.take_along_axis(where, index[..., None], axis=-1)[..., 0]
    i, j = pair // m, pair % m
    a, b = at(pair), at(j * m + i)
    hit = lambda x, n: jax.nn.one_hot(x, n, dtype=bool)
    rows = hit(i, m) | hit(j, m)
    columns = hit(a, m) | hit(b, m)
    swapped = mask ^ (rows[..., :, None] & columns[..., None, :])
    better = gain > noise
    return jnp.where(better[..., None, None], swapped, mask), better.any(), steps + 1

  more = lambda carry: carry[1] & (carry[2] < 4 * m * m)
  return jax.lax.while_loop(more, body, (mask, jnp.bool_(True), 0))[0]
