"""Where zeros may be: from scores to masks, and from masks to formats.

A pattern divides a matrix `[*batch, R, O]` into *cells* that compete (the whole matrix; or a group
of m rows) of `units` units each (entries, blocks, channels), of which the `kept` best stay. Each
matrix of a stack competes by itself.
"""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import axes
from jaxsparse.core import spelling as spell
from jaxsparse.formats import bitmask
from jaxsparse.formats import block as block_format
from jaxsparse.formats import nm as nm_format
from jaxsparse.numerics import balance
from jaxsparse.numerics import select


class Pattern(NamedTuple):
  """A sparsity pattern.

  Attributes:
    units: `(layout) -> int`, units that compete in a cell; raises ValueError where the pattern
      does not fit.
    mask: `(scores [*batch, R, O], kept) -> bool mask`; `kept` may be traced.
    pack: `(matrix, mask, layout) -> format or matrix`.
    spelling: its spelled form.
    entries: whether units are single entries of the whole matrix, so that weights can be pooled.
    fixed: the only sparsity the pattern can have, or None.
    fit: `(layout) -> Pattern`, of a pattern whose units depend on the weight's own axes.
    loose: `(layout) -> (Pattern, cells)`: the same units competing over the whole matrix, of which
      `cells` times as many stay; what drops by this may grow anywhere that the pattern allows.
    wider: the pattern of a set around a mask of this one that trains without being used; None
      where that is the pattern itself, whose larger choice contains its smaller one.
  """

  units: Callable[[axes.Layout], int]
  mask: Callable[[jax.Array, Any], jax.Array]
  pack: Callable[[jax.Array, jax.Array, axes.Layout], Any]
  spelling: Any
  entries: bool = False
  fixed: float | None = None
  fit: Callable[[axes.Layout], 'Pattern'] | None = None
  loose: Callable[[axes.Layout], tuple['Pattern', int]] | None = None
  wider: 'Pattern | None' = None

  def on(self, layout: axes.Layout) -> 'Pattern':
    """The pattern on one weight; itself unless its units depend on the weight's own axes."""
    return self if self.fit is None else self.fit(layout)


def check_positive(word: str, value: Any) -> None:
  """Raises ValueError where `value` is no positive integer."""
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise ValueError(f'{word} must be a positive integer, got {value!r}.')


def unstructured() -> Pattern:
  """Any entry. Stored as a bitmask where that is smaller than the dense weight.

  Example:
    >>> unstructured().mask(jnp.array([[1.0, 3.0, 2.0]]), 2).tolist()
    [[False, True, True]]
  """
  def pack(matrix, mask, layout):
    stored = bitmask.BitmaskArray.from_mask(matrix, mask, layout)
    return _if_smaller(stored, matrix, mask)

  return Pattern(lambda layout: math.prod(layout.matrix_shape[-2:]),
                 lambda scores, kept: select.top_k_mask(scores, kept, axes=(-2, -1)),
                 pack, spell.call(unstructured, {}), entries=True)


def _if_smaller(stored, matrix, mask):
  """The format where it is smaller than the dense weight, else that with its zeros."""
  dense_bytes = matrix.size * matrix.dtype.itemsize
  return stored if stored.nbytes < dense_bytes else jnp.where(mask, matrix, 0)


def n_m(n: int, m: int) -> Pattern:
  """At most `n` of every `m` consecutive rows (along the reduction axis) of a column.

  Mishra et al., "Accelerating Sparse Deep Neural Networks" (arXiv:2104.08378). Ties keep the lower
  row. JaxPruner groups the last axis, a kernel's output, and its ties keep the higher index.

  Raises:
    ValueError: not 0 < n <= m; or, in use, m does not divide the reduction axis.

  Example:
    >>> n_m(1, 2).mask(jnp.array([[1.0], [3.0]]), 1).tolist()
    [[False], [True]]
  """
  spelling = spell.call(n_m, locals())
  check_positive('n', n), check_positive('m', m)
  if n > m:
    raise ValueError(f'n:m keeps n of every m, so n must not exceed m; got n={n}, m={m}.')
  if m > 256:
    raise ValueError(f'm must be at most 256, got {m}.')

  def units(layout):
    rows = layout.matrix_shape[-2]
    if rows % m:
      divisors = [d for d in range(m, 1, -1) if rows % d == 0]
      advice = f'the nearest m that divides it is {divisors[0]}' if divisors else 'no m divides it'
      raise ValueError(f'the reduction axis of size {rows} (shape {layout.shape}) is not '
                       f'divisible by m={m}; {advice}: pad the layer or exclude it with at(...).')
    return m

  def pack(matrix, mask, layout):
    if isinstance(mask, jax.core.Tracer):
      return nm_format.NMArray.from_mask(matrix, mask, layout, n, m)
    # While a schedule is on its way to n a group keeps more, and is stored with as many.
    kept = np.asarray(mask).reshape(*mask.shape[:-2], -1, m, mask.shape[-1]).sum(-2)
    return nm_format.NMArray.from_mask(matrix, mask, layout, int(kept.max(initial=n)), m)

  return Pattern(units, lambda scores, kept: select.n_of_m_mask(scores, kept, m), pack, spelling,
                 fixed=1 - n / m)


def block(rows: int, columns: int, *, pad: bool = False) -> Pattern:
  """Whole blocks of `rows` x `columns` of the matrix, ranked by their mean score.

  JaxPruner's are over the first two axes of a weight, and its masks of ragged ones have another
  shape than the weight; here a mask always has the weight's own.

  Args:
    rows: of the block, along the reduction axis.
    columns: of the block, along the output axis.
    pad: accept ragged edges (edge blocks are smaller, and rank by the mean of what they have).

  Raises:
    ValueError: a size is not a positive integer; or, in use, the block does not divide the matrix
      and `pad` is False.

  Example:
    >>> block(1, 2).mask(jnp.array([[1.0, 1.0, 3.0, 0.0]]), 1).tolist()
    [[False, False, True, True]]
  """
  spelling = spell.call(block, locals())
  check_positive('rows', rows), check_positive('columns', columns)
  size = (rows, columns)

  def mask(scores, kept):
    return _spread(select.top_k_mask(_means(scores, size), kept, axes=(-2, -1)), size, scores)

  return Pattern(lambda layout: math.prod(_grid(layout, size, pad)), mask, _block_pack(size),
                 spelling)


def _grid(layout, size, pad) -> tuple[int, int]:
  """Block rows and columns; raises where the blocks do not divide the matrix."""
  for axis, n, unit in zip(('reduction', 'output'), layout.matrix_shape[-2:], size):
    if not pad and n % unit:
      raise ValueError(f'the {axis} axis of size {n} (shape {layout.shape}) is not divisible '
                       f'by the block size {unit}; pass pad=True or exclude it with at(...).')
  return block_format.grid_of(layout.matrix_shape, size)


def _means(scores, size):
  """Mean scores of blocks `[*batch, nk, nn]`; edge blocks are smaller."""
  total = lambda x: block_format.blocks_of(x, size).sum((-3, -1))
  members = total(jnp.ones(scores.shape[-2:], scores.dtype))
  sums = total(scores)
  return sums / jnp.broadcast_to(members, sums.shape)


def _spread(chosen, size, like):
  """A choice of blocks as a mask of the shape of `like`."""
  full = jnp.repeat(jnp.repeat(chosen, size[0], axis=-2), size[1], axis=-1)
  return full[..., :like.shape[-2], :like.shape[-1]]


def _block_pack(size):
  def pack(matrix, mask, layout):
    stored = block_format.BlockArray.from_mask(matrix, mask, layout, size)
    compact = bitmask.BitmaskArray.from_mask(matrix, mask, layout)
    return _if_smaller(min(stored, compact, key=lambda x: x.nbytes), matrix, mask)
  return pack


def balanced_blocks(rows: int, columns: int, *, pad: bool = False) -> Pattern:
  """Whole blocks of `rows` x `columns`, equally many in every block column and in every block row.

  What runs fast: it packs to panels without padding (`formats.BlockArray`), and forward product,
  input gradient and weight gradient have shapes that no mask changes. Every block column keeps
  `S = n - round(n * sparsity)` of its n blocks, at least one (half to even): with 8 block rows,
  sparsity 0.9 keeps one of eight, 0.875. Block rows keep `S * columns / n` each; where that is no
  integer, they differ by one. Blocks rank by their mean score; balance costs a few percent of the
  score that unbalanced blocks would keep (`numerics.balance`), and may bring a block back before
  its turn while sparsity rises.

  Args:
    rows: of the block, along the reduction axis; 128 is a TPU's unit (256 from v6e on).
    columns: of the block, along the output axis.
    pad: accept ragged edges, whose blocks are stored padded.

  Raises:
    ValueError: a size is not a positive integer; or, in use, the block does not divide the matrix
      and `pad` is False.

  Example:
    >>> scores = jnp.array([[3.0, 2.0], [0.0, 1.0]])
    >>> balanced_blocks(1, 1).mask(scores, 1).tolist()   # the rows' turn as well as the columns'
    [[True, False], [False, True]]
  """
  spelling = spell.call(balanced_blocks, locals())
  check_positive('rows', rows), check_positive('columns', columns)
  size = (rows, columns)

  def mask(scores, kept):
    means = _means(scores, size)
    choose = balance.balanced_mask
    for _ in range(means.ndim - 2):
      choose = jax.vmap(choose, in_axes=(0, None))
    return _spread(choose(means, kept), size, scores)

  def pack(matrix, mask, layout):
    stored = block_format.BlockArray.from_mask(matrix, mask, layout, size)
    return _if_smaller(stored, matrix, mask)

  def best_of_columns(scores, kept):
    return _spread(select.top_k_mask(_means(scores, size), kept, axes=(-2,)), size, scores)

  balanced = Pattern(
      lambda layout: _grid(layout, size, pad)[0], mask, pack, spelling,
      loose=lambda layout: (block(rows, columns, pad=pad), _grid(layout, size, pad)[1]))
  # Rows count where an input gradient is taken, and a set that is not used has no part in that.
  return balanced._replace(wider=balanced._replace(mask=best_of_columns, loose=None))


def vector(length: int = 16) -> Pattern:
  """Runs of `length` outputs of a row, as vector registers read them; ragged ends are shorter.

  Elsen et al., "Fast Sparse ConvNets" (arXiv:1911.09723), section 3: 1 x 16 for CPU kernels. The
  same as `block(1, length, pad=True)`.

  Raises:
    ValueError: `length` is not a positive integer.

  Example:
    >>> vector(2).mask(jnp.array([[1.0, 1.0, 3.0]]), 1).tolist()
    [[False, False, True]]
  """
  spelling = spell.call(vector, locals())
  check_positive('length', length)
  return block(1, length, pad=True)._replace(spelling=spelling)


def channel(axis: str = 'output') -> Pattern:
  """Whole channels, ranked by their mean score: columns ('output') or rows ('reduction').

  Raises:
    ValueError: `axis` is neither.

  Example:
    >>> channel().mask(jnp.array([[1.0, 3.0], [1.0, 0.0]]), 1).tolist()
    [[False, True], [False, True]]
  """
  spelling = spell.call(channel, locals())
  if axis not in ('output', 'reduction'):
    raise ValueError(f"axis must be 'output' or 'reduction', got {axis!r}.")
  along, across = (-1, -2) if axis == 'output' else (-2, -1)

  def mask(scores, kept):
    chosen = select.top_k_mask(scores.mean(across, keepdims=True), kept, axes=(-2, -1))
    return jnp.broadcast_to(chosen, scores.shape)

  def pack(matrix, mask, layout):
    r, o = matrix.shape[-2:]
    tile = (r, 1) if axis == 'output' else (1, o)
    stored = block_format.BlockArray.from_mask(matrix, mask, layout, tile)
    return _if_smaller(stored, matrix, mask)

  return Pattern(lambda layout: layout.matrix_shape[along], mask, pack, spelling)
