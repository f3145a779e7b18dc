"""A permutation of input channels under which N:M keeps more of a weight's magnitude.

Pool and Yu, "Channel Permutations for N:M Sparsity" (NeurIPS 2021). Groups of m consecutive rows
compete, so which rows are neighbours decides what is lost. Two rows of different groups change
places as long as that keeps more; of all pairs the best go first, as many at a time as touch
different groups. Unlike the paper there is no escape from a local optimum, so that the result
depends on the weight alone. The network's function stays the same when what produces the channels
is permuted alike: `permuted`.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxsparse.core import names
from jaxsparse.sparsity import patterns

_CHUNK = 2**24   # floats of a block of comparisons


class Permutation(NamedTuple):
  """An order of channels.

  Attributes:
    order: int `[R]`; the channel at place i is the one that was at `order[i]`.
    before: magnitude that N:M keeps of the weight as it is.
    after: the same in this order; never less.
  """

  order: np.ndarray
  before: float
  after: float


def permute_for_nm(w: Any, n: int, m: int, *, axis: int = -2) -> Permutation:
  """The order of the entries along `axis` found to raise the magnitude kept by `n` of every `m`.

  Args:
    w: a weight; all axes but `axis` are outputs, so that a stack of layers shares one order.
    n: kept in each group.
    m: group size.
    axis: the reduction axis, that an earlier weight produces.

  Returns:
    A `Permutation`; give its order to `permuted`.

  Raises:
    ValueError: not 0 < n <= m, the axis is not divisible by m, or the weight is not finite.

  Example:
    >>> found = permute_for_nm(np.array([[9.], [8.], [1.], [2.]]), 1, 2)
    >>> found.before, found.after
    (11.0, 17.0)
  """
  patterns.n_m(n, m)   # says what is wrong with either
  rows = np.abs(np.asarray(w).astype(np.float32))
  if rows.ndim < 2 or rows.shape[axis] % m:
    raise ValueError(f'expected a weight of rank 2 or more, axis {axis} divisible by m={m}, got '
                     f'shape {rows.shape}.')
  rows = np.moveaxis(rows, axis, 0).reshape(rows.shape[axis], -1)
  if not np.isfinite(rows).all():
    raise ValueError('expected a finite weight, found NaN or infinite values.')
  start = np.arange(len(rows)).reshape(-1, m)
  before = _kept(rows, start, n)
  if n == m or len(start) < 2:
    return Permutation(start.ravel(), before, before)
  order = _search(rows, start, n, noise=1e-6 * rows.max(initial=0) * rows.shape[1])
  after = _kept(rows, order, n)
  # Sums in float32 choose the swaps; the exact ones have the last word.
  return Permutation(order.ravel(), before, after) if after > before else Permutation(
      start.ravel(), before, before)


def _kept(rows, groups, n) -> float:
  """Magnitude kept by the `n` largest of each group `[G, m]` of rows, in float64."""
  best = np.sort(rows[groups], axis=1)[:, -n:]
  return float(best.sum(dtype=np.float64))


def _search(rows, groups, n, noise):
  groups = groups.copy()
  channels, m = len(rows), groups.shape[1]
  # put[i, x]: what the group of channel i keeps with channel x in its place.
  put = np.empty((channels, channels), np.float32)
  stale = np.arange(len(groups))
  while len(stale):
    for group in groups[stale]:
      for slot, i in enumerate(group):
        put[i] = _placed(rows, np.delete(group, slot), n)
    kept = put[groups[:, 0], groups[:, 0]]
    # gain[g, s, h, t]: slot s of group g changes places with slot t of group h.
    flat = groups.ravel()
    both = put[np.ix_(flat, flat)]
    gain = (both + both.T).reshape(len(groups), m, len(groups), m)
    gain = gain - kept[:, None, None, None] - kept[None, None, :, None]
    gain = np.moveaxis(gain, 2, 1).reshape(len(groups), len(groups), m * m)
    best, slots = gain.max(-1), gain.argmax(-1)
    stale = _swap(groups, np.triu(best, 1), slots, noise)
  return groups


def _placed(rows, rest, n):
  """What a group keeps with each channel in turn beside the channels `rest`: `[R]`."""
  others = np.sort(rows[rest], axis=0)
  base, bar = others[-n:].sum(0), others[-n]
  # The newcomer replaces the smallest kept one in the columns where it is larger.
  step = max(_CHUNK // rows.shape[1], 1)
  return base.sum() + np.concatenate([
      np.maximum(rows[k:k + step] - bar, 0).sum(1) for k in range(0, len(rows), step)])


def _swap(groups, best, slots, noise):
  """Swaps the best pairs of distinct groups in place; returns the groups that changed."""
  m = groups.shape[1]
  pairs = np.argwhere(best > noise)
  order = np.argsort(-best[tuple(pairs.T)], kind='stable')
  taken: list[int] = []
  free = np.ones(len(groups), bool)
  for g, h in pairs[order]:
    if free[g] and free[h]:
      free[[g, h]] = False
      s, t = divmod(slots[g, h], m)
      groups[g, s], groups[h, t] = groups[h, t], groups[g, s]
      taken += [g, h]
  return np.asarray(taken, int)


def permuted(params: Any, order: Any, axes: dict[str, int]) -> Any:
  """`params` with the given axes in a new order.

  Name every axis along the channels, and the network's function stays the same: the reduction axis
  of each consumer, the output axis of each producer, their biases and norm scales between.

  Args:
    params: the model's own container.
    order: int `[R]`, a permutation.
    axes: {weight name: axis}.

  Returns:
    A tree like `params`.

  Raises:
    ValueError: `order` is no permutation, a name is no weight's, or an axis has another size.

  Example:
    >>> params = {'a': np.array([[1., 2.]]), 'b': np.array([[3.], [4.]])}
    >>> both = permuted(params, [1, 0], {'a': 1, 'b': 0})
    >>> both['a'].tolist(), (both['a'] @ both['b']).item()
    ([[2.0, 1.0]], 11.0)
  """
  order = np.asarray(order)
  if order.ndim != 1 or not np.array_equal(np.sort(order), np.arange(len(order))):
    raise ValueError(f'order must hold each of 0 to {order.size - 1} once, got {order!r}.')
  leaves, rebuild = names.named_leaves(params)
  unknown = sorted({*axes} - {leaf.name for leaf in leaves})
  if unknown:
    raise names.no_match(unknown[0], [leaf.name for leaf in leaves])

  def moved(leaf):
    if leaf.name not in axes:
      return leaf.value
    axis, shape = axes[leaf.name], leaf.value.shape
    if not -len(shape) <= axis < len(shape) or shape[axis] != len(order):
      raise ValueError(f'{leaf.name}: the order is of {len(order)} channels; expected that size at '
                       f'axis {axis} of shape {shape}.')
    return leaf.value.take(order, axis=axis)

  return rebuild([moved(leaf) for leaf in leaves])
