"""How sure a difference of two accuracies is, when both are over the same examples.

Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13.
"""

import numpy as np


def paired(hits, others, *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
  """Returns the 95 % interval of the mean of `hits - others`, examples resampled in pairs.

  A difference is -1, 0 or 1, so a resample of the examples is a multinomial draw of three counts:
  the same distribution as drawing examples one by one, without doing so.

  Args:
    hits: `[n]` bool, whether one model is right.
    others: `[n]` bool, whether the other is, on the same examples.
    resamples: draws.
    seed: of the draws.

  Raises:
    ValueError: the two do not match, or are empty.

  Example:
    >>> low, high = paired([True] * 90 + [False] * 10, [True] * 100)
    >>> round(low, 2), round(high, 2)
    (-0.16, -0.05)
  """
  hits, others = np.asarray(hits, bool), np.asarray(others, bool)
  if hits.shape != others.shape or hits.ndim != 1 or not hits.size:
    raise ValueError(f'Hits are of the same examples; got shapes {hits.shape}, {others.shape}.')
  difference = hits.astype(int) - others
  shares = [(difference == value).mean() for value in (-1, 0, 1)]
  counts = np.random.default_rng(seed).multinomial(hits.size, shares, size=resamples)
  means = (counts[:, 2] - counts[:, 0]) / hits.size
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)
