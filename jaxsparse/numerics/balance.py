"""Doubly balanced selection: the same number of ones in every column, and in every row.

A transportation problem: rows have capacities, columns a demand. Prices of the rows (its dual,
moved by subgradient steps) bring each column's own best choice near to balance; then columns choose
one after another by score less price. With R columns left, a row that has R ones to give has to
give one to each of them: chosen first, those leave every later column enough (Gale, "A theorem on
flows in networks", 1957; Ryser, 1957), so counts are exact whatever the scores.
"""

import jax
import jax.numpy as jnp

_STEPS = 32   # of the prices; fewer lose a few percent of the score, more gain nothing


@jax.jit
def balanced_mask(scores: jax.Array, kept) -> jax.Array:
  """True for exactly `kept` entries of each column, and as many in each row as in any other.

  Where `kept * columns` does not divide by the number of rows, the counts of rows differ by one.
  Among such masks one of high total score, exactly the best where each column's best is balanced
  as it is; ties go to the lower row.

  Args:
    scores: `[rows, columns]`, floating; infinities exclude and keep where balance allows it.
    kept: an integer in [0, rows], or an int32 scalar.

  Returns:
    A bool mask of the shape of `scores`.

  Example:
    >>> balanced_mask(jnp.array([[3.0, 2.0], [0.0, 1.0]]), 1).tolist()
    [[True, False], [False, True]]
  """
  rows, columns = scores.shape
  if not scores.size:
    return jnp.zeros(scores.shape, bool)
  kept = jnp.asarray(kept, jnp.int32)
  scores = _scaled(scores)
  total = kept * columns
  fair = total.astype(jnp.float32) / rows

  def bid(prices, i):
    demand = _best(scores - prices[:, None], kept).sum(1)
    step = 0.5 / (1 + i) ** 0.5 / columns
    return prices + step * (demand - fair), None

  start = jnp.zeros(rows, jnp.float32)
  prices, _ = jax.lax.scan(bid, start, jnp.arange(_STEPS, dtype=jnp.float32))
  priced = scores - prices[:, None]
  # Rows in demand take the ones that do not divide.
  wanted = _best(priced, kept).sum(1) + jax.nn.sigmoid(prices) * 0.5
  capacity = total // rows + _best(wanted[:, None], total % rows)[:, 0]

  def choose(capacity, column):
    left, values = column
    # Finite marks, above and below all priced scores: ranks stay those of the values between.
    values = jnp.where(capacity == left, values + 4 * _FAR, values)
    values = jnp.where(capacity > 0, values, -8 * _FAR)
    chosen = _best(values[:, None], kept)[:, 0]
    return capacity - chosen, chosen

  left = jnp.arange(columns, 0, -1, dtype=jnp.int32)
  _, chosen = jax.lax.scan(choose, capacity.astype(jnp.int32), (left, priced.T))
  free = _best(scores, kept)
  even = free.sum(1)
  balanced = (even.max() - even.min()) <= (total % rows > 0)
  return jnp.where(balanced, free, chosen.T)


_FAR = 64.0   # beyond any price: of scores that exclude or keep


def _scaled(scores):
  """Scores in [0, 1], those that are infinite far outside, NaN the lowest of the finite."""
  scores = scores.astype(jnp.float32)
  finite = jnp.isfinite(scores)
  low = jnp.where(finite, scores, jnp.inf).min()
  high = jnp.where(finite, scores, -jnp.inf).max()
  spread = jnp.where(high > low, high - low, 1)
  inside = jnp.where(finite, (scores - jnp.where(finite.any(), low, 0)) / spread, 0)
  return jnp.where(jnp.isinf(scores), jnp.sign(scores) * _FAR, inside)


def _best(values, kept):
  """True for the `kept` largest of each column, ties to the lower row."""
  order = jnp.argsort(-values, axis=0, stable=True)
  rank = jnp.argsort(order, axis=0, stable=True)
  return rank < kept
