"""Sparsity shared between layers by how much each can lose.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks"
(arXiv:1506.02626), section 3, prune each layer alone and look at the accuracy, then choose
thresholds by hand. Here the same table is measured once, and a total is shared out by it.
"""

import itertools
import math
from typing import Any, Callable, NamedTuple

import jax.numpy as jnp

from jaxsparse.core import calibration
from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.numerics import select
from jaxsparse.sparsity import distributions

Table = dict[str, list[tuple[float, float]]]


def sensitivities(loss_fn: Callable, params: Any, batches: Any, *,
                  sparsities: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 0.95)) -> Table:
  """How much the loss rises when one weight alone is pruned by magnitude.

  One evaluation of every batch for each weight and sparsity, in one compiled program.

  Args:
    loss_fn: `(params, batch) -> loss`, a scalar.
    params: the dense model.
    batches: an iterable of what `loss_fn` takes; losses are averaged.
    sparsities: the fractions of zeros tried, each in (0, 1).

  Returns:
    `{weight name: [(sparsity, rise), ...]}`, for `by_sensitivity`.

  Raises:
    ValueError: there are no batches or no weights, a sparsity is outside (0, 1), or a loss is not
      finite.

  Example:
    >>> params = {'a': jnp.array([[1., 2.]]), 'b': jnp.array([[1., 3.]])}
    >>> loss = lambda p, x: x * (10 * p['a'].sum() + p['b'].sum()) * -1.0
    >>> sensitivities(loss, params, [1.0], sparsities=(0.5,))
    {'a': [(0.5, 10.0)], 'b': [(0.5, 1.0)]}
  """
  batches = list(batches)
  leaves, rebuild = names.named_leaves(params)
  if not batches or not any(leaf.is_weight for leaf in leaves):
    raise ValueError('sensitivities needs batches and weights; found '
                     f'{len(batches)} batches and {sum(x.is_weight for x in leaves)} weights.')
  if not all(0 < s < 1 for s in sparsities):
    raise ValueError(f'sparsities must be in (0, 1), got {tuple(sparsities)!r}.')
  loss = calibration.mean_loss(loss_fn, batches)
  mean = lambda values, where: loss(rebuild(values), where)
  dense = [leaf.value for leaf in leaves]
  start, table = mean(dense, 'dense'), {}
  for i, leaf in enumerate(leaves):
    if leaf.is_weight:
      w = jnp.asarray(leaf.value)
      def pruned(s, w=w):
        mask = select.top_k_mask(jnp.abs(w.astype(jnp.float32)), w.size - round(w.size * s))
        return jnp.where(mask, w, 0)
      table[leaf.name] = [
          (float(s), mean([*dense[:i], pruned(s), *dense[i + 1:]], leaf.name) - start)
          for s in sorted(sparsities)]
  return table


class BySensitivity(NamedTuple):
  """What `by_sensitivity` makes: a distribution that follows a table."""

  table: Table
  spelling: Any

  def __call__(self, layouts, sparsity):
    curves = {}
    for key in layouts:
      name = names.name_of(key)
      if name not in self.table:
        raise ValueError(f'{name}: not in the table of sensitivities, which has '
                         f'{", ".join(sorted(self.table))}.')
      curves[key] = _hull(self.table[name])
    # Whole ranks of a stack are removed, so that each of its matrices loses as much.
    step = {k: distributions.matrices(x) for k, x in layouts.items()}
    size = {k: math.prod(x.shape) for k, x in layouts.items()}
    pieces = [((y - y0) / ((x - x0) * size[k]), x, k) for k, curve in curves.items()
              for (x0, y0), (x, y) in itertools.pairwise(curve)]
    removed = dict.fromkeys(layouts, 0)
    left = round(sparsity * sum(size.values()))
    for _, x, k in sorted(pieces, key=lambda piece: piece[:2]):
      more = min(math.floor(x * size[k] + 1e-6) - removed[k], left) // step[k] * step[k]
      removed[k] += more
      left -= more
    if left >= max(step.values(), default=1):
      raise ValueError(f'the table of sensitivities ends before a sparsity of {sparsity:g}: '
                       f'{left} weights more would have to go; measure larger sparsities.')
    return {k: removed[k] / size[k] for k in layouts}


def by_sensitivity(table: Table) -> BySensitivity:
  """Removes weights where the loss rises least for each, until the total is reached.

  A weight's curve goes from (0, 0) through its points; of it the lower convex hull counts, along
  which the marginal damage a removed weight grows, so that taking the cheapest piece first is
  optimal for the hulls. The total is exact, to one entry of each matrix of a stack.

  Args:
    table: `{weight name: [(sparsity, rise of the loss), ...]}`, as `sensitivities` returns.

  Returns:
    A distribution, for every method that takes one.

  Raises:
    ValueError: the table is no such dict; or, in use, leaves out a weight or ends too early.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'a': jnp.ones((4, 4)), 'b': jnp.ones((4, 4))}
    >>> shares = by_sensitivity({'a': [(0.75, 9.0)], 'b': [(0.75, 1.0)]})
    >>> _, state = jsp.magnitude(0.5, distribution=shares).init(params)
    >>> {k: int(m.sum()) for k, m in jsp.masks(state).items()}
    {'a': 12, 'b': 4}
  """
  spelling = spell.call(by_sensitivity, locals())
  if not isinstance(table, dict) or not table:
    raise ValueError(f'table must be what sensitivities returns, got {table!r}.')
  for name, points in table.items():
    for point in points:
      if len(point) != 2 or not 0 < point[0] < 1 or not math.isfinite(point[1]):
        raise ValueError(f'{name}: expected points (sparsity in (0, 1), finite rise), got '
                         f'{point!r}.')
  return BySensitivity(table, spelling)


def _hull(points) -> list[tuple[float, float]]:
  """The lower convex hull from (0, 0) on."""
  hull: list[tuple[float, float]] = [(0.0, 0.0)]
  for x, y in sorted(map(tuple, points)):
    cross = lambda a, b, x=x, y=y: (b[1] - a[1]) * (x - a[0]) - (y - a[1]) * (b[0] - a[0])
    while len(hull) > 1 and cross(hull[-2], hull[-1]) >= 0:
      hull.pop()
    hull.append((x, y))
  return hull
