"""Sparsity of each weight from one number: functions `({key: Layout}, s) -> {key: sparsity}`.

Static: they read shapes only. A distribution is passed and spelled by its bare name.
"""

import math

from jaxsparse.core import axes


def _matrices(layout: axes.Layout) -> int:
  return math.prod(layout.shape[a] for a in layout.batch)


def uniform(layouts: dict[str, axes.Layout], sparsity: float) -> dict[str, float]:
  """The same sparsity everywhere.

  Example:
    >>> uniform({'a': None, 'b': None}, 0.5)
    {'a': 0.5, 'b': 0.5}
  """
  return dict.fromkeys(layouts, sparsity)


def pooled(layouts: dict[str, axes.Layout], sparsity: float) -> dict[str, float]:
  """One threshold over all weights together; for patterns of single entries.

  The counts of each weight follow from the scores, so `prune` ranks them in one selection; as
  a table of targets it can only say the total.

  Example:
    >>> pooled({'a': None}, 0.5)
    {'a': 0.5}
  """
  return dict.fromkeys(layouts, sparsity)


def erk(layouts: dict[str, axes.Layout], sparsity: float) -> dict[str, float]:
  """Erdos-Renyi-Kernel: density in proportion to `sum(dims) / prod(dims)` of a kernel.

  Evci et al., "Rigging the Lottery" (arXiv:1911.11134), section 3. Layers whose density would
  pass 1 stay dense and the others share the rest, until none does. Batch axes (layers, experts)
  count as separate kernels of the same shape. A layer adds `size - floor(sparsity size)` entries
  to the budget, as in RigL's code and JaxPruner's, with which this agrees to rounding.

  Example:
    >>> wide = axes.Layout((100, 100), 'float32', axes.DimensionNumbers((0,), (1,)))
    >>> thin = axes.Layout((10, 10), 'float32', axes.DimensionNumbers((0,), (1,)))
    >>> {k: round(s, 3) for k, s in erk({'wide': wide, 'thin': thin}, 0.9).items()}
    {'wide': 0.908, 'thin': 0.082}
  """
  kernel = {k: [n for a, n in enumerate(x.shape) if a not in x.batch] for k, x in layouts.items()}
  size = {k: math.prod(x.shape) for k, x in layouts.items()}
  raw = {k: sum(dims) / math.prod(dims) for k, dims in kernel.items()}
  dense: set[str] = set()
  while True:
    free = [k for k in layouts if k not in dense]
    if not free:
      return dict.fromkeys(layouts, 0.0)
    ones = sum(n - math.floor(sparsity * n) for n in size.values())
    budget = ones - sum(size[k] for k in dense)
    scale = budget / sum(raw[k] * size[k] for k in free)
    over = {k for k in free if raw[k] * scale > 1}
    if not over:
      density = {k: 1.0 if k in dense else raw[k] * scale for k in layouts}
      # Below one in a float's precision of 1 there is nothing left to keep.
      return {k: min(max(1 - d, 0.0), 1 - 1e-9) for k, d in density.items()}
    dense |= over
