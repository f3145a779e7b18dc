"""Exact selection without sorting: k-th largest by bisection on bits, top-k and n-of-m masks.

Floats map to unsigned integers in an order-preserving way, so the k-th largest is found by 32
counting passes: no sort buffer, one scalar all-reduce a pass under sharding, and no reshape of
the weight. Ties go to the lowest row-major index, by a second bisection over indices.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def _ordered_bits(x: jax.Array) -> jax.Array:
  """uint32 in the order of `x`; -0.0 equals 0.0 and NaN comes below everything."""
  x = x.astype(jnp.float32)
  x = jnp.where(x == 0, 0.0, jnp.where(jnp.isnan(x), -jnp.inf, x))
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  sign = np.uint32(1 << 31)
  return jnp.where(bits >> 31 == 0, bits | sign, ~bits)


def _largest(holds, bits: int, shape) -> jax.Array:
  """The largest uint32 below `2^bits` for which the monotone `holds` is true, bit by bit."""
  def body(i, t):
    candidate = t | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
    return jnp.where(holds(candidate), candidate, t)
  return jax.lax.fori_loop(0, bits, body, jnp.zeros(shape, jnp.uint32))


def top_k_mask(scores: jax.Array, k, *, axes: tuple[int, ...] | None = None) -> jax.Array:
  """True for exactly the `k` largest of each slice; ties keep the lower row-major index.

  Args:
    scores: any shape, floating; fewer than 2^31 entries in a slice.
    k: an integer, or an integer array broadcastable against the slices with `axes` kept as 1.
    axes: the axes of a slice; None means all.

  Returns:
    A bool mask of the shape of `scores`.

  Raises:
    ValueError: a slice holds 2^31 entries or more.

  Example:
    >>> top_k_mask(jnp.array([[3., 1.], [3., 2.]]), 2)
    Array([[ True, False],
           [ True, False]], dtype=bool)
  """
  axes = tuple(range(scores.ndim)) if axes is None else tuple(a % scores.ndim for a in axes)
  return _select([scores], k, axes)[0]


def top_k_masks(scores: list[jax.Array], k) -> list[jax.Array]:
  """True for exactly the `k` largest over all arrays together, without concatenating them.

  Ties keep the earlier array, then the lower row-major index.

  Args:
    scores: arrays of any shapes; fewer than 2^31 entries in all.
    k: an integer or integer array `()`.

  Returns:
    Bool masks of the shapes of `scores`.

  Raises:
    ValueError: there are 2^31 entries or more.

  Example:
    >>> [m.tolist() for m in top_k_masks([jnp.array([1., 3.]), jnp.array([2.])], 2)]
    [[False, True], [True]]
  """
  return _select(scores, k, None)


# Compiled by shape, so that calls outside jit do not compile anew.
@functools.partial(jax.jit, static_argnames='axes')
def _select(scores: list[jax.Array], k, axes: tuple[int, ...] | None) -> list[jax.Array]:
  """`axes` None pools all entries of all arrays; otherwise there is one array, and its slices."""
  slice_axes = [tuple(range(s.ndim)) if axes is None else axes for s in scores]
  sizes = [math.prod(s.shape[a] for a in ax) for s, ax in zip(scores, slice_axes)]
  if sum(sizes) >= 2**31:
    raise ValueError(f'Cannot select within {sum(sizes)} entries: counts are 32-bit integers.')
  if not sum(s.size for s in scores):
    return [jnp.zeros(s.shape, bool) for s in scores]
  bits = [_ordered_bits(s) for s in scores]
  slices = () if axes is None else tuple(
      1 if a in axes else n for a, n in enumerate(scores[0].shape))

  def count(hits):
    sums = [h.sum(ax, dtype=jnp.int32, keepdims=axes is not None)
            for h, ax in zip(hits, slice_axes)]
    return sum(sums[1:], sums[0])

  k = jnp.asarray(k, jnp.int32)
  # max(k, 1): every threshold satisfies k = 0, which is cut at the end.
  threshold = _largest(lambda t: count([u >= t for u in bits]) >= jnp.maximum(k, 1), 32, slices)
  above, tied = [u > threshold for u in bits], [u == threshold for u in bits]
  wanted = k - count(above)

  def break_ties():
    indices, start = [], 0
    for s, ax, size in zip(scores, slice_axes, sizes):
      index, stride = jnp.full(s.shape, start, jnp.uint32), 1
      for a in reversed(ax):
        index += jax.lax.broadcasted_iota(jnp.uint32, s.shape, a) * np.uint32(stride)
        stride *= s.shape[a]
      indices.append(index)
      start += size
    limit = _largest(
        lambda t: count([x & (i < t) for x, i in zip(tied, indices)]) <= wanted,
        max(sum(sizes).bit_length(), 1), slices)
    return [a | (x & (i < limit)) for a, x, i in zip(above, tied, indices)]

  exact = (wanted == count(tied)).all()
  chosen = jax.lax.cond(exact, lambda: [a | x for a, x in zip(above, tied)], break_ties)
  return [mask & (k > 0) for mask in chosen]


@functools.partial(jax.jit, static_argnames='m')
def n_of_m_mask(scores: jax.Array, n: int, m: int) -> jax.Array:
  """True for the `n` largest of every `m` consecutive rows; ties keep the lower row.

  Ranks by pairwise comparison inside the group: no sort.

  Args:
    scores: `[..., R, O]` with `m` dividing R.
    n: kept in each group.
    m: group size.

  Returns:
    A bool mask of the shape of `scores`.
  """
  groups = scores.reshape(*scores.shape[:-2], -1, m, scores.shape[-1])
  groups = jnp.where(jnp.isnan(groups), -jnp.inf, groups)
  row = jax.lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 2)
  rank = jnp.zeros(groups.shape, jnp.int32)
  for j in range(m):
    rival = groups[..., j:j + 1, :]
    rank += (rival > groups) | ((rival == groups) & (j < row))
  return (rank < n).reshape(scores.shape)
