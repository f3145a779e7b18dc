"""Sparsity of each weight from one number: functions `({key: Layout}, s) -> {key: sparsity}`.

They read shapes only. A distribution without arguments is passed and spelled by its bare name.
Those in `POOLED` leave the shares to the scores: `prune` ranks all weights together, and as a
table of targets they can only say the total.
"""

import math

from jaxsparse.core import axes


def matrices(layout: axes.Layout) -> int:
  """Matrices in the stack that a weight is; 1 where it has no batch axes."""
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

  Example:
    >>> pooled({'a': None}, 0.5)
    {'a': 0.5}
  """
  return dict.fromkeys(layouts, sparsity)


def pooled_normalized(layouts: dict[str, axes.Layout], sparsity: float) -> dict[str, float]:
  """`pooled`, with the scores of each weight divided by their Euclidean norm first.

  So that a layer of small weights is not pruned for its scale: JaxPruner's rule for global
  magnitude (Lee et al., arXiv:2304.14082), norm + 1e-8. The norm is of the weights not pruned yet,
  and of a stacked weight as a whole.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params = {'large': jnp.array([[8., 6.]]), 'small': jnp.array([[.4, .3]])}
    >>> transform = jsp.magnitude(0.5, distribution=jsp.pooled_normalized)
    >>> {k: m.tolist() for k, m in jsp.masks(transform.init(params)[1]).items()}
    {'large': [[True, False]], 'small': [[True, False]]}
  """
  return dict.fromkeys(layouts, sparsity)


POOLED = (pooled, pooled_normalized)


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
  return _in_proportion(layouts, sparsity, kernel)


def er(layouts: dict[str, axes.Layout], sparsity: float) -> dict[str, float]:
  """Erdos-Renyi: density in proportion to `(in + out) / (in * out)` of the matrix.

  Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity"
  (arXiv:1707.04780). As `erk`, with a convolution's window and input channels one axis.

  Example:
    >>> conv = axes.Layout((2, 2, 5, 5), 'float32', axes.DimensionNumbers((0, 1, 2), (3,)))
    >>> dense = axes.Layout((50, 50), 'float32', axes.DimensionNumbers((0,), (1,)))
    >>> {k: round(s, 3) for k, s in er({'conv': conv, 'dense': dense}, 0.9).items()}
    {'conv': 0.48, 'dense': 0.917}
  """
  return _in_proportion(layouts, sparsity, {k: x.matrix_shape[-2:] for k, x in layouts.items()})


def _in_proportion(layouts, sparsity, dims):
  """Densities in proportion to `sum(dims) / prod(dims)`, at most 1, of the total asked for."""
  size = {k: math.prod(x.shape) for k, x in layouts.items()}
  raw = {k: sum(d) / math.prod(d) for k, d in dims.items()}
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
