"""How masks change: overlap of two snapshots, and what each update dropped and grew.

A snapshot is what `jaxsparse.masks(state)` gives, `{weight name: bool array}`, True keeps; a copy
`{name: np.array(mask) for name, mask in masks(state).items()}`, as a train step donates its state.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Masks = Mapping[str, np.ndarray]


class Overlap(NamedTuple):
  """How alike two masks are.

  Attributes:
    hamming: fraction of entries that differ.
    iou: kept by both over kept by either; 1 where neither keeps any.
  """

  hamming: float
  iou: float


class Churn(NamedTuple):
  """What one update changed.

  Attributes:
    dropped: entries that went, over those kept before.
    grown: entries that came, over those kept before.
  """

  dropped: float
  grown: float


def overlap(a: Masks, b: Masks) -> dict[str, Overlap]:
  """Returns the overlap of two snapshots, weight by weight.

  Raises:
    ValueError: if the snapshots hold other weights or shapes, or what is no mask.

  Example:
    >>> a, b = np.array([True, True, False]), np.array([True, False, False])
    >>> overlap({'w': a}, {'w': b})['w'].iou
    0.5
  """
  found = {}
  for name, (x, y) in _pairs(a, b).items():
    either = int((x | y).sum())
    iou = int((x & y).sum()) / either if either else 1.0
    found[name] = Overlap(int((x ^ y).sum()) / max(x.size, 1), iou)
  return found


def churn(snapshots: Sequence[Masks]) -> dict[str, list[Churn]]:
  """Returns what changed from each snapshot to the next, weight by weight.

  Of `rigl` both fractions are its drop fraction; of gradual pruning only weights are dropped.

  Args:
    snapshots: in the order of training, one after each update of the masks.

  Raises:
    ValueError: if the snapshots hold other weights or shapes, or what is no mask.

  Example:
    >>> before, after = np.array([True, True, False]), np.array([True, False, True])
    >>> churn([{'w': before}, {'w': after}])['w'][0]
    Churn(dropped=0.5, grown=0.5)
  """
  found = {name: [] for name in (snapshots[0] if snapshots else ())}
  for a, b in itertools.pairwise(snapshots):
    for name, (x, y) in _pairs(a, b).items():
      before = max(int(x.sum()), 1)
      found[name].append(Churn(int((x & ~y).sum()) / before, int((y & ~x).sum()) / before))
  return found


def overlap_matrix(snapshots: Sequence[Masks], *, measure: str = 'iou') -> np.ndarray:
  """Returns the overlap of every two snapshots, over all weights together.

  Args:
    snapshots: n of them.
    measure: `'iou'` or `'hamming'`.

  Returns:
    float64 `[n, n]`, symmetric.

  Raises:
    ValueError: if there are none, they do not match, or the measure is not known.

  Example:
    >>> overlap_matrix([{'w': np.array([1, 1], bool)}, {'w': np.array([1, 0], bool)}]).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
  """
  if measure not in Overlap._fields:
    raise ValueError(f'measure is one of {", ".join(Overlap._fields)}; got {measure!r}.')
  if not snapshots:
    raise ValueError('There are no snapshots to compare.')
  joined = []
  for snapshot in snapshots:
    pairs = _pairs(snapshots[0], snapshot)
    joined.append(np.concatenate([np.zeros(0, bool), *(y.ravel() for _, y in pairs.values())]))
  entry = lambda x, y: getattr(overlap({'': x}, {'': y})[''], measure)
  return np.array([[entry(x, y) for y in joined] for x in joined])


def _pairs(a, b):
  if set(a) != set(b):
    raise ValueError(f'Snapshots of other weights: {sorted(a)} and {sorted(b)}.')
  pairs = {}
  for name in a:
    x, y = np.asarray(a[name]), np.asarray(b[name])
    if x.dtype != bool or y.dtype != bool or x.shape != y.shape:
      raise ValueError(
        f'{name}: found {x.dtype} of shape {x.shape} and {y.dtype} of shape {y.shape}, expected '
        'bool masks of one shape.'
      )
    pairs[name] = x, y
  return pairs
