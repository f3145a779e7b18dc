"""Exact selection without sorting: the k-th largest by counting, top-k and n-of-m masks.

Floats map to unsigned integers in an order-preserving way; between two of them, one with at least k
scores above it and one with fewer, the search alternates between interpolating the counts and
halving the interval, and ends as soon as a threshold has exactly k. Each pass reads the scores once
and writes nothing: no sort buffer, one scalar all-reduce a pass under sharding, no reshape of the
weight. At most 66 passes. Ties go to the lowest row-major
index, by the same search over indices, run only where a tie straddles the threshold.

Backends that flush denormal numbers treat them as zeros here as everywhere.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

_SIGN = np.uint32(1 << 31)
_UNROLLED = 8   # the largest m whose m (m - 1) comparisons are written out


def _key(x: jax.Array) -> jax.Array:
  """uint32 in the order of float32 `x`, which is no NaN; -0.0 equals 0.0."""
  bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
  return jnp.where(bits >= _SIGN, ~bits, bits | _SIGN)


def _of_key(key: jax.Array) -> jax.Array:
  """The float32 whose key it is."""
  bits = jnp.where(key >= _SIGN, key ^ _SIGN, ~key)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _search(count, k, low, high, at_low, at_high) -> tuple[jax.Array, jax.Array]:
  """The largest uint32 in `[low, high)` with `count(t) >= k`, or any with exactly `k`.

  Args:
    count: `uint32 t -> int32`, falling; all arrays here are of the slices' shape.
    k: int32, wanted.
    low: uint32 with `count(low) >= k`; where it has fewer, it is returned.
    high: uint32 above `low` with `count(high) < k`.
    at_low: int32, `count(low)`.
    at_high: int32, `count(high)`.

  Returns:
    The threshold, uint32, and its count, int32.
  """
  def unfinished(carry):
    low, high, at_low, _, _ = carry
    return ((at_low != k) & (high - low > 1)).any()

  def narrow(carry):
    low, high, at_low, at_high, turn = carry
    span = high - low
    share = (at_low - k).astype(jnp.float32) / jnp.maximum(at_low - at_high, 1)
    guess = (jnp.clip(share, 0, 1) * span.astype(jnp.float32)).astype(jnp.uint32)
    # Interpolation alone can crawl, halving alone takes a pass a bit.
    t = low + jnp.clip(jnp.where(turn, span // 2, guess), 1, jnp.maximum(span - 1, 1))
    n = count(t)
    enough = n >= k
    return (jnp.where(enough, t, low), jnp.where(enough, high, t),
            jnp.where(enough, n, at_low), jnp.where(enough, at_high, n), ~turn)

  shape = low.shape
  # Inside shard_map all of the carry differs between devices if any of it does.
  none = (low & 0) | (high & 0) | ((at_low | at_high) & 0).astype(jnp.uint32)
  low, high, at_low = low | none, high | none, at_low | none.astype(jnp.int32)
  at_high |= none.astype(jnp.int32)
  start = (low, high, jnp.broadcast_to(at_low, shape), jnp.broadcast_to(at_high, shape),
           jnp.zeros([], bool))
  low, _, at_low, _, _ = jax.lax.while_loop(unfinished, narrow, start)
  return low, at_low


def _count(hits: jax.Array, axes: tuple[int, ...], keepdims: bool) -> jax.Array:
  """How many of `hits` are true along `axes`, int32."""
  at_once = lambda h: h.sum(axes, dtype=jnp.int32, keepdims=keepdims)
  rows = hits.ndim - 2
  if rows not in axes or hits.shape[rows] >= 2**24 or jax.device_count() > 1:
    return at_once(hits)
  rest = tuple(a for a in axes if a != rows)

  def by_column(h):
    # XLA:CPU vectorizes a float sum over rows alone: a third of the time. Exact below 2^24.
    sums = h.sum(rows, dtype=jnp.float32, keepdims=True).astype(jnp.int32)
    return sums.sum(rest if keepdims else None, dtype=jnp.int32, keepdims=keepdims)

  # Elsewhere, and where rows may be sharded, it would reduce a vector between devices.
  return jax.lax.platform_dependent(hits, cpu=by_column, default=at_once)


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


@functools.partial(jax.jit, static_argnames='axes')
def kth_largest(x: jax.Array, k, *, axes: tuple[int, ...]) -> jax.Array:
  """The `k`-th largest value of each slice, the axes of a slice kept as 1.

  Args:
    x: floating, any shape; fewer than 2^31 entries in a slice, none of them NaN.
    k: an integer array broadcastable against the slices, from 1 to their size.
    axes: the axes of a slice.

  Returns:
    float32.

  Example:
    >>> kth_largest(jnp.array([[3., 1., 2.]]), jnp.array([[2]]), axes=(1,)).tolist()
    [[2.0]]
  """
  x = x.astype(jnp.float32)
  axes = tuple(a % x.ndim for a in axes)
  slices = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
  k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), slices)
  reach = lambda key: _count(x >= _of_key(key), axes, True)
  low, high = x.min(axes, keepdims=True), x.max(axes, keepdims=True)
  total = jnp.full(slices, math.prod(x.shape[a] for a in axes), jnp.int32)
  key, _ = _search(reach, k, _key(low), _key(high) + 1, total, jnp.zeros_like(k))
  # The threshold may lie between two values.
  return jnp.where(x >= _of_key(key), x, jnp.inf).min(axes, keepdims=True)


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
  scores = [s.astype(jnp.float32) for s in scores]
  pooled = axes is None
  slices = () if pooled else tuple(1 if a in axes else n for a, n in enumerate(scores[0].shape))

  def count(hits):
    return sum(_count(h, ax, not pooled) for h, ax in zip(hits, slice_axes))

  def most(values):   # NaN compares as false, so that it counts as the least
    found = [v.max(ax, keepdims=not pooled, initial=-jnp.inf) for v, ax in zip(values, slice_axes)]
    return functools.reduce(jnp.maximum, found)

  reach = lambda key: count([s >= _of_key(key) for s in scores])
  k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), slices)
  at_least = jnp.maximum(k, 1)   # every threshold satisfies k = 0, which is cut at the end
  top = most([jnp.where(jnp.isnan(s), -jnp.inf, s) for s in scores])
  # One after the other: together, a TPU holds scratch for twice as many sums at a time.
  ceiling, top = jax.lax.optimization_barrier((jnp.float32(jnp.inf), top))
  bottom = -most([jnp.where(jnp.isnan(s), ceiling, -s) for s in scores])
  total = jnp.full(slices, sum(sizes), jnp.int32)
  key, found = _search(reach, at_least, _key(bottom), _key(top) + 1, total, jnp.zeros_like(k))
  threshold = _of_key(key)
  ends = sum(sizes) - np.cumsum([0, *sizes[:-1]])

  # Made where it is used, as what a branch takes from outside is a buffer of a weight's size.
  def parts(s, ax, end):
    above = s > threshold
    tied = (s == threshold) | ((threshold == -jnp.inf) & ~above)   # below the least is only NaN
    return above, tied, np.uint32(end) - 1 - _index(s.shape, ax)

  def first_of_ties():
    tied_at = lambda t: [x & (i >= t) for _, x, i in map(parts, scores, slice_axes, ends)]
    above = count([s > threshold for s in scores])
    zero = jnp.zeros(slices, jnp.uint32)
    return _search(lambda t: count(tied_at(t)), jnp.maximum(k - above, 1), zero,
                   jnp.full_like(zero, sum(sizes)), found - above, jnp.zeros_like(k))[0]

  first = jax.lax.cond((found <= at_least).all(), lambda: key & 0,
                       first_of_ties)
  return [(a | (x & (i >= first))) & (k > 0) for a, x, i in map(parts, scores, slice_axes, ends)]


def _index(shape, axes: tuple[int, ...]) -> jax.Array:
  """The row-major index of each entry within its slice, uint32."""
  index, stride = jnp.zeros(shape, jnp.uint32), 1
  for a in reversed(axes):
    index += jax.lax.broadcasted_iota(jnp.uint32, shape, a) * np.uint32(stride)
    stride *= shape[a]
  return index


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
  if m <= _UNROLLED:
    # Row by row XLA:CPU vectorizes whatever the scores are fused with; broadcast rivals it may not.
    rows = [groups[..., j, :] for j in range(m)]
    beaten = lambda i, j: rows[j] > rows[i] if j > i else rows[j] >= rows[i]
    ranks = [sum((beaten(i, j).astype(jnp.int32) for j in range(m) if j != i), jnp.int32(0))
             for i in range(m)]
    kept = [jnp.broadcast_to(rank < n, rows[0].shape) for rank in ranks]
    return jnp.stack(kept, -2).reshape(scores.shape)
  row = jax.lax.broadcasted_iota(jnp.int32, groups.shape, groups.ndim - 2)
  rank = jnp.zeros(groups.shape, jnp.int32)
  for j in range(m):
    rival = groups[..., j:j + 1, :]
    rank += (rival > groups) | ((rival == groups) & (j < row))
  return (rank < n).reshape(scores.shape)
