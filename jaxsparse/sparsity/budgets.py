"""A budget of floating point operations instead of one of weights.

Of all masks within the budget, the one that keeps the largest sum of scores: the Lagrangian of that
problem keeps an entry when its score is worth its price, `score / uses >= lambda`, with one lambda
for all weights. It is found by bisection over the bits of a float, and what is left of the budget
goes to entries that tie with it, so that less than the price of one entry stays unspent.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.numerics import select
from jaxsparse.sparsity import patterns

_MOST_USES = 2**15   # so that a use times 16 bits of a count fits 31


class FlopsBudget(NamedTuple):
  """What `flops_budget` makes: a distribution that ranks all weights together, by price."""

  uses: dict[str, int]
  spelling: Any

  def __call__(self, layouts, sparsity):
    """The one table that keeps to the budget whatever the scores are."""
    self.prices(layouts)
    return dict.fromkeys(layouts, sparsity)

  def prices(self, layouts) -> dict[str, int]:
    """{key: uses of an entry}, without their common factor.

    Raises:
      ValueError: a weight has none.
    """
    found = {}
    for key in layouts:
      name = names.name_of(key)
      if name not in self.uses:
        raise ValueError(f'{name}: flops_budget does not say how often an entry is used; it knows '
                         f'{", ".join(sorted(self.uses))}.')
      found[key] = self.uses[name]
    common = math.gcd(*found.values())
    found = {key: n // common for key, n in found.items()}
    for key, n in found.items():
      if n >= _MOST_USES:
        raise ValueError(f'{names.name_of(key)}: expected fewer than {_MOST_USES} uses for each '
                         f'use of the cheapest weight, got {n}; round the uses.')
    return found


def flops_budget(*, uses: dict[str, int]) -> FlopsBudget:
  """Sparsity as the fraction of FLOPs removed, spent where a score is worth most.

  For patterns of single entries. With `f = jsp.flops(apply_fn, params, *inputs)` the uses are
  `{name: w.executed // (2 * size of the weight)}`: a convolution's entry is used at each position,
  a dense layer's once a row of the batch.

  Args:
    uses: {weight name: multiply-adds with each of its entries}, positive integers.

  Returns:
    A distribution, for `magnitude` and `prune`.

  Raises:
    ValueError: `uses` is no such dict; or, in use, leaves out a weight.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'conv': jnp.array([[3., 4.]]), 'dense': jnp.array([[1., 2., 1.2, 1.3]])}
    >>> transform = jsp.magnitude(0.5, distribution=jsp.flops_budget(uses={'conv': 4, 'dense': 1}))
    >>> {k: m.tolist() for k, m in jsp.masks(transform.init(params)[1]).items()}
    {'conv': [[False, False]], 'dense': [[True, True, True, True]]}
  """
  spelling = spell.call(flops_budget, locals())
  if not isinstance(uses, dict) or not uses:
    raise ValueError(f'uses must be a dict of weight names to multiply-adds, got {uses!r}.')
  for name, n in uses.items():
    patterns.check_positive(f'uses of {name!r}', n)
  return FlopsBudget(uses, spelling)


def budgeted_masks(scores: list[jax.Array], prices: list[int], removed: list[float],
                   entry) -> list[jax.Array]:
  """Masks that keep the most score for at most `(1 - removed[entry])` of the price of everything.

  Args:
    scores: of any shapes.
    prices: of an entry of each, below 2^15.
    removed: fractions of the whole price.
    entry: which of `removed`; may be traced.

  Returns:
    Bool masks of the shapes of `scores`.
  """
  whole = sum(s.size * p for s, p in zip(scores, prices))
  budgets = [whole - round(whole * r) for r in removed]
  if whole >= 2**46:
    raise ValueError(f'Cannot spend {whole} multiply-adds exactly; divide the uses.')
  split = np.asarray([divmod(b, 2**16) for b in budgets], np.uint32)
  return _spend(scores, jnp.asarray(prices, jnp.uint32), jnp.asarray(split)[entry])


@jax.jit
def _spend(scores, prices, budget):
  worth = [_ordered(s.astype(jnp.float32) / p.astype(jnp.float32)) for s, p in zip(scores, prices)]
  count = lambda t: jnp.stack([(w >= t).sum(dtype=jnp.uint32) for w in worth])
  fits = lambda counts: _price(counts, prices, budget)

  def bar_bit(i, t):   # of the smallest bar above which everything fits
    higher = t | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    return jnp.where(fits(count(higher - 1)), t, higher)
  # What scores minus infinity was pruned before, and is not brought back to use up the budget.
  lowest = _ordered(jnp.float32(-jnp.inf)) + 1
  bar = jnp.maximum(jax.lax.fori_loop(0, 32, bar_bit, jnp.uint32(0)), lowest)
  kept = count(bar)
  tied = jnp.where(bar == lowest, 0, count(bar - 1) - kept)

  def fill(kept, i):
    def more_bit(b, extra):
      more = extra | (jnp.uint32(1) << (30 - b).astype(jnp.uint32))
      can = (more <= tied[i]) & fits(kept.at[i].add(more))
      return jnp.where(can, more, extra)
    extra = jax.lax.fori_loop(0, 31, more_bit, jnp.uint32(0))
    return kept.at[i].add(extra), None

  # What ties at the bar is taken weight by weight, in order.
  kept, _ = jax.lax.scan(fill, kept, jnp.arange(len(scores)))
  return [select.top_k_mask(s, k) for s, k in zip(scores, kept.astype(jnp.int32))]


def _ordered(x):
  """uint32 in the order of `x`; NaN like minus infinity."""
  bits = jax.lax.bitcast_convert_type(jnp.where(jnp.isnan(x), -jnp.inf, x + 0.0), jnp.int32)
  flipped = jnp.where(bits < 0, ~bits, bits | np.int32(-2**31))
  return jax.lax.bitcast_convert_type(flipped, jnp.uint32)


def _price(counts, prices, budget):
  """Whether `sum(counts * prices)` is within the budget, in 48 bits of two words."""
  low, high = counts & 0xffff, counts >> 16
  low = low * prices
  high = high * prices + (low >> 16)
  low = (low & 0xffff).sum(dtype=jnp.uint32)
  high = high.sum(dtype=jnp.uint32) + (low >> 16)
  low &= 0xffff
  return (high < budget[0]) | ((high == budget[0]) & (low <= budget[1]))
