"""Slow, obvious numpy versions of what sparse training does to one matrix."""

import numpy as np


def largest(scores, count):
  """True for the `count` largest; ties to the lower row-major index."""
  flat = np.asarray(scores, np.float32).ravel()
  mask = np.zeros(flat.size, bool)
  mask[sorted(range(flat.size), key=lambda i: (-flat[i], i))[:count]] = True
  return mask.reshape(np.shape(scores))


def n_of_m(scores, n, m):
  """True for the `n` largest of each `m` consecutive rows of a column; ties to the lower row."""
  mask = np.zeros(scores.shape, bool)
  for column in range(scores.shape[1]):
    for row in range(0, scores.shape[0], m):
      mask[row:row + m, column] = largest(scores[row:row + m, column], n)
  return mask


def drop_and_grow(w, mask, scores, fraction):
  """One update of one matrix, entry by entry; ties to the lower index."""
  w, old, scores = np.abs(w).ravel(), mask.ravel(), np.asarray(scores).ravel()
  active = np.flatnonzero(old)
  count = int(np.round(np.float32(fraction) * len(active)))
  keep = sorted(active, key=lambda i: (-w[i], i))[:len(active) - count]
  grow = sorted(set(range(old.size)) - set(keep), key=lambda i: (-scores[i], i))[:count]
  new = np.zeros(old.size, bool)
  new[[*keep, *grow]] = True
  return new.reshape(mask.shape)
