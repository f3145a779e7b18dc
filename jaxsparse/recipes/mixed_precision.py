"""Mixed precision: each weight its own scheme, chosen exactly within a budget.

What each scheme costs each weight is measured once (Dong et al., "HAWQ", arXiv:1905.03696, choose
by such sensitivities too, estimated from curvature); rises of the loss are added up, as all who
allocate do. The choice is a multiple-choice knapsack, solved exactly by keeping, weight by weight,
every total that no other beats in both bytes and loss (Nemhauser and Ullmann, 1969): what is left
at the end is the whole Pareto front.
"""

import re
from typing import Any, Callable, Mapping, NamedTuple

import numpy as np

from jaxsparse.core import calibration
from jaxsparse.core import combine
from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.recipes import spelled


class Choice(NamedTuple):
  """One scheme for one weight."""

  scheme: str    # the spelled transform
  nbytes: int    # of the packed weight
  rise: float    # of the loss when this weight alone is compressed
  flops: int = 0   # of its products, two for each multiply-add that is kept


class Allocation(NamedTuple):
  """A scheme for each weight.

  Attributes:
    schemes: {weight name: spelled transform}.
    nbytes: of all those weights, packed.
    rise: the sum of the rises measured.
    flops: of the products of all those weights.
  """

  schemes: dict[str, str]
  nbytes: int
  rise: float
  flops: int = 0

  @property
  def recipe(self) -> str:
    """All of it as one spelled transform, for `parse`; other weights stay as they are."""
    by_scheme = {}
    for name, text in self.schemes.items():
      by_scheme.setdefault(text, []).append(re.escape(name))
    rows = [('|'.join(found), spelled.parse(text)) for text, found in by_scheme.items()]
    return transforms.spell_transform(combine.rules([*rows, ('.*', transforms.identity())]))


Costs = dict[str, list[Choice]]


def scheme_costs(loss_fn: Callable, params: Any, batches: Any, schemes: tuple[str, ...], *,
                 weights: str = '.*', stats: Any = None,
                 rows: int | Mapping[str, int] = 1) -> Costs:
  """What each scheme costs each weight, in bytes and in loss; one evaluation for each pair.

  Args:
    loss_fn: `(params, batch) -> loss`, a scalar; it is compiled once.
    params: the float model.
    batches: an iterable of what `loss_fn` takes; losses are averaged.
    schemes: spelled transforms, such as `"quantize('int4', group=64)"`; `'identity()'` keeps a
      weight as it is, for nothing.
    weights: a regular expression for the names of the weights to choose for.
    stats: of calibration, for schemes that ask for them.
    rows: how many rows of inputs meet a weight, or {weight name: rows}, such as the positions of a
      convolution's output; operations are counted for those.

  Returns:
    {weight name: [`Choice`, ...]}, for `allocate` and `pareto_front`.

  Raises:
    ValueError: there are no batches, no schemes or no such weights, a scheme has no spelled form,
      or a loss is not finite; the message names the weight.

  Example:
    >>> import jax.numpy as jnp
    >>> loss = lambda p, x: abs(p['w'] - jnp.array([[7.0], [1.2]])).sum()
    >>> costs = scheme_costs(loss, {'w': jnp.array([[7.0], [1.2]])}, [0], ("quantize('int4')",))
    >>> costs['w'][0].nbytes, round(costs['w'][0].rise, 3)
    (5, 0.2)
  """
  batches, schemes = list(batches), tuple(schemes)
  leaves, rebuild = names.named_leaves(params)
  pattern = names.compile_pattern(weights)
  chosen = [n for n, leaf in enumerate(leaves) if leaf.is_weight and pattern.fullmatch(leaf.name)]
  if not batches or not schemes or not chosen:
    raise ValueError(f'scheme_costs needs batches, schemes and weights; found {len(batches)}, '
                     f'{len(schemes)} and {len(chosen)} that match {weights!r}.')
  made = {text: spelled.parse(text) for text in schemes}
  loss = calibration.mean_loss(loss_fn, batches)
  mean = lambda values, where: loss(rebuild(values), where)
  values = [leaf.value for leaf in leaves]
  start, costs = mean(values, 'the float model'), {}
  for n in chosen:
    name, costs[leaves[n].name] = leaves[n].name, []
    for text, transform in made.items():
      alone = combine.at(re.escape(name), transform)
      latents, state = alone.init(params, stats=stats)
      packed = names.named_leaves(alone.pack(latents, state))[0]
      stored = {leaf.name: leaf.value for leaf in packed}[name]
      new = [*values[:n], formats.densify(stored), *values[n + 1:]]
      rise = 0.0 if text == 'identity()' else mean(new, f'{name} under {text}') - start
      meets = rows if isinstance(rows, int) else rows.get(name, 1)
      kept = stored.multiply_adds(meets).ideal if formats.is_format(stored) else (
          meets * stored.size)
      costs[name].append(Choice(text, formats.nbytes(stored), rise, 2 * kept))
  return costs


def pareto_front(costs: Costs) -> list[Allocation]:
  """Every allocation that no other beats in both bytes and rise, from the smallest up.

  Raises:
    ValueError: there is no weight, or one without choices.

  Example:
    >>> front = pareto_front({'w': [Choice("quantize('int8')", 8, 0.1),
    ...                             Choice("quantize('int4')", 4, 0.3)]})
    >>> [(a.nbytes, a.rise) for a in front]
    [(4, 0.3), (8, 0.1)]
  """
  sizes, rises, steps = _front(costs)
  return [_trace(costs, steps, n, rises) for n in range(len(sizes))]


def allocate(costs: Costs, *, nbytes: int | None = None, flops: int | None = None,
             rise: float | None = None) -> Allocation:
  """The allocation of least rise within a budget, or of least bytes within `rise`; exact.

  Args:
    costs: from `scheme_costs`.
    nbytes: the budget of all weights together.
    flops: the budget of all their products together.
    rise: the most that the loss may rise, in all.

  Raises:
    ValueError: not one limit is given, or no allocation keeps to the one given; the
      message says what the best is.

  Example:
    >>> costs = {'w': [Choice("quantize('int8')", 8, 0.1), Choice("quantize('int4')", 4, 0.3)]}
    >>> allocate(costs, nbytes=7).recipe
    "rules([('w', quantize('int4')), ('.*', identity())])"
  """
  limits = {'nbytes': nbytes, 'flops': flops, 'rise': rise}
  given = {name: limit for name, limit in limits.items() if limit is not None}
  if len(given) != 1:
    raise ValueError(f'allocate takes one limit, nbytes=, flops= or rise=; got {given or "none"}.')
  (kind, limit), = given.items()
  sizes, rises, steps = _front(costs, 'flops' if kind == 'flops' else 'nbytes')
  within = np.flatnonzero(rises <= limit if kind == 'rise' else sizes <= limit)
  if not within.size:
    best = {'nbytes': f'{sizes[0]} bytes', 'flops': f'{sizes[0]} operations',
            'rise': f'a rise of {rises[-1]:g}'}[kind]
    raise ValueError(f'no allocation keeps to {limit:g}: the least is {best}.')
  # Along the front bytes rise and the loss falls.
  return _trace(costs, steps, within[0] if kind == 'rise' else within[-1], rises)


def _front(costs, measure='nbytes'):
  """Sizes and rises of the front, and for each weight (state before, choice) of each state."""
  if not costs or not all(costs.values()):
    empty = [name for name, choices in costs.items() if not choices]
    raise ValueError(f'every weight needs a choice; {", ".join(empty) or "there is no weight"}.')
  sizes, rises, steps = np.zeros(1, np.int64), np.zeros(1), []
  for choices in costs.values():
    more = np.array([getattr(c, measure) for c in choices], np.int64)
    worse = np.array([c.rise for c in choices])
    total, loss = (sizes[:, None] + more).ravel(), (rises[:, None] + worse).ravel()
    order = np.lexsort((loss, total))
    best = np.minimum.accumulate(loss[order])
    kept = order[np.concatenate([[True], loss[order][1:] < best[:-1]])]
    steps.append(np.divmod(kept, len(choices)))
    sizes, rises = total[kept], loss[kept]
  return sizes, rises, steps


def _trace(costs, steps, n, rises):
  chosen, loss = {}, float(rises[n])
  for name, (before, choice) in reversed([*zip(costs, steps)]):
    chosen[name] = costs[name][choice[n]]
    n = before[n]
  chosen = dict(reversed(chosen.items()))
  return Allocation({name: c.scheme for name, c in chosen.items()},
                    sum(c.nbytes for c in chosen.values()), loss,
                    sum(c.flops for c in chosen.values()))
