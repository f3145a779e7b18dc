"""Adam whose moments of large tables are count sketches.

Spring et al., "Compressing Gradient Optimizers via Count-Sketches" (arXiv:1902.00179), algorithms 1
and 3: n rows of moments share `depth` tables of `width` rows. Row i goes, in table j, to bucket
`h_j(i)` with sign `s_j(i)`; what is read is the median over j of `s_j(i) S_j[h_j(i)]` for the first
moment, and without signs the least over j for the second (a count-min sketch), which is never below
the true one and so never zero where it is not. A sketch is linear: decayed as a whole, it is that
of Adam's own moments, where the paper moves each row by what it read.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.core import names
from jaxsparse.numerics import hashing
from jaxsparse.numerics import rounding


class SketchedAdamState(NamedTuple):
  """State of `sketched_adam`: of a sketched leaf `[n, ...]` moments are `[depth, width, ...]`."""

  count: jax.Array   # int32 ()
  mu: Any            # like the params, float32
  nu: Any


def sketched_adam(learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999,
                  eps: float = 1e-8, *, ratio: float = 0.2, depth: int = 3, min_rows: int = 1024,
                  only: str | None = None, seed: int = 0) -> optax.GradientTransformationExtraArgs:
  """Adam with moments of few rows: for embeddings and heads with many rows, few of them moving.

  Rows that share a bucket see each other's moments: the fewer rows get a gradient, the closer this
  is to Adam. Shrink `eps` no further: it is added to a second moment that is too large, not small.
  `jsp.realign` cannot zero a row of a sketch. What gives the sketch its shape is no array: call
  `optax.inject_hyperparams(sketched_adam, ('ratio', 'depth', 'min_rows', 'seed'))`.

  Args:
    learning_rate: a number or a schedule.
    b1: decay of the first moment.
    b2: decay of the second.
    eps: added to its root.
    ratio: rows of all tables of a sketch over rows of the leaf, in (0, 1].
    depth: tables; with 3 a median outvotes one collision.
    min_rows: leaves with fewer rows along their first axis, or one axis, have Adam's own moments.
    only: a regular expression for the names of the leaves to sketch; None: all.
    seed: of the hashes.

  Returns:
    An optax transformation with state `SketchedAdamState`, and that of the learning rate.

  Raises:
    ValueError: a ratio, depth or min_rows out of range; in `init`, where `only` matches nothing.

  Example:
    >>> tx, params = sketched_adam(0.1), {'embedding': jnp.ones((3000, 4)), 'bias': jnp.ones(4)}
    >>> tx.init(params)[0].mu['embedding'].shape
    (3, 200, 4)
  """
  if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 1:
    raise ValueError(f'ratio must be in (0, 1], got {ratio!r}.')
  for word, value in (('depth', depth), ('min_rows', min_rows)):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
      raise ValueError(f'{word} must be a positive integer, got {value!r}.')
  hashing.check_seed(seed)
  pattern = None if only is None else names.compile_pattern(only)

  def widths(tree):
    """Rows of a table for each leaf, 0 where it keeps Adam's moments."""
    def width(path, x):
      sketched = x.ndim > 1 and x.shape[0] >= min_rows and (
          pattern is None or pattern.fullmatch(names.weight_name(path)))
      return max(1, int(np.ceil(x.shape[0] * ratio / depth))) if sketched else 0
    return jax.tree_util.tree_map_with_path(width, tree)

  def init(params):
    found = widths(params)
    if pattern is not None and jax.tree.leaves(params) and not any(jax.tree.leaves(found)):
      raise ValueError(f'{only!r} matches no leaf of {min_rows} rows and more.')
    empty = lambda x, w: (jnp.zeros((depth, w, *x.shape[1:]), jnp.float32) if w
                          else jnp.zeros_like(x, jnp.float32))
    return SketchedAdamState(jnp.zeros([], jnp.int32), jax.tree.map(empty, params, found),
                             jax.tree.map(empty, params, found))

  def update(updates, state, params=None, **extra):
    del params, extra
    count = optax.safe_increment(state.count)
    step = functools.partial(_step, b1=b1, b2=b2, eps=eps, count=count, depth=depth, seed=seed)
    leaves, treedef = jax.tree.flatten(updates)
    parts = [treedef.flatten_up_to(t) for t in (state.mu, state.nu, widths(updates))]
    moved, mu, nu = zip(*[step(*each) for each in zip(leaves, *parts)]) if leaves else ((),) * 3
    return treedef.unflatten(moved), SketchedAdamState(count, treedef.unflatten(mu),
                                                       treedef.unflatten(nu))

  return optax.chain(optax.GradientTransformationExtraArgs(init, update),
                     optax.scale_by_learning_rate(learning_rate))


def _step(g, mu, nu, width, *, b1, b2, eps, count, depth, seed):
  grad = g.astype(jnp.float32)
  if width:
    places, signs = _hashes(grad.shape[0], width, depth, seed)
    across = lambda s: s.reshape(-1, *(1,) * (grad.ndim - 1))
    # A row at a time, so that neither the signed nor the squared rows are held depth times.
    sketch = lambda rows, signs: jnp.stack([
        jax.ops.segment_sum(rows * across(s), p, width) for p, s in zip(places, signs)])
    mu = b1 * mu + (1 - b1) * sketch(grad, signs)
    nu = b2 * nu + (1 - b2) * sketch(grad * grad, jnp.ones_like(signs))
    first = jnp.median(jnp.stack([t[p] * across(s) for t, p, s in zip(mu, places, signs)]), 0)
    second = functools.reduce(jnp.minimum, [t[p] for t, p in zip(nu, places)])
  else:
    mu, nu = b1 * mu + (1 - b1) * grad, b2 * nu + (1 - b2) * grad * grad
    first, second = mu, nu
  first = first / (1 - b1 ** count.astype(jnp.float32))
  second = second / (1 - b2 ** count.astype(jnp.float32))
  return (first / (jnp.sqrt(second) + eps)).astype(g.dtype), mu, nu


def _hashes(rows, width, depth, seed):
  """Buckets int32 and signs float32, `[depth, rows]` each."""
  bits = jnp.stack([rounding.noise((rows,), rounding.mix(seed, n)) for n in range(depth)])
  signs = 1.0 - 2.0 * (bits >> np.uint32(31)).astype(jnp.float32)
  return ((bits & np.uint32(0x7FFFFFFF)) % np.uint32(width)).astype(jnp.int32), signs
