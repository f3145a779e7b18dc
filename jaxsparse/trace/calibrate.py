"""Calibration: statistics of a model's inputs to each weight, over batches of data."""

import functools
from typing import Any, Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from jaxsparse.core import names
from jaxsparse.trace import hooks
from jaxsparse.trace import jaxprs
from jaxsparse.trace import observers
from jaxsparse.trace import tracked


def calibrate(apply_fn: Callable, params: Any, batches: Iterable,
              observer: observers.Observer) -> dict[str, Any]:
  """Observes what each weight is multiplied with, over batches.

  Args:
    apply_fn: called as `apply_fn(params, *batch)`; compiled once for each shape of batch.
    params: tree of weights, formats allowed.
    batches: each a tuple of arguments, or a single argument (an array, a dict, ...).
    observer: `gram`, `input_norm`, `range_`, or your own.

  Returns:
    `{weight name: statistic}`, float32, for `init(params, stats=...)`. Weights of a scanned stack
    have a leading layer axis. Weights that are only looked up have none.

  Raises:
    ValueError: there are no batches, a weight holds NaN, or a statistic is not finite; the message
      names the weight.

  Example:
    >>> import jaxsparse as jsp
    >>> fn = lambda params, x: x @ params['w']
    >>> stats = calibrate(fn, {'w': jnp.ones((2, 3))}, [jnp.eye(2), 2 * jnp.eye(2)], jsp.gram)
    >>> stats['w'].tolist()
    [[5.0, 0.0], [0.0, 5.0]]
  """
  _check_weights(params)
  watched = hooks.watching(apply_fn, observers.hook_of(observer), observer.merge)

  @functools.partial(jax.jit, static_argnums=1)
  def observe(arrays, static):
    params, args = static.merge(arrays)
    return watched(params, *args)[1]

  @jax.jit
  def merge(a, b):
    return tracked.join(a, b, observer.merge)

  total = None
  for batch in batches:
    args = batch if type(batch) is tuple else (batch,)
    found = observe(*jaxprs.split((params, args)))
    total = found if total is None else merge(total, found)
  if total is None:
    raise ValueError('calibrate was given no batches; pass at least one (a used-up iterator has '
                     'none left).')
  return _finished(total, observer)


def _finished(total, observer):
  stats = {}
  for name, seen in sorted(total.items()):
    if seen.flag is not None and not bool(seen.flag):
      logging.warning('%s: no batch reached an operation that uses it, so it has no statistic.',
                      name)
      continue
    statistic = jax.tree.map(lambda a: a.astype(jnp.float32), observer.finish(seen.value))
    if not all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(statistic)):
      raise ValueError(f'The statistic of {name!r} is not finite: an input to it is NaN or '
                       'infinite, or too large to square in float32, or no row reached it.')
    stats[name] = statistic
  if not stats:
    logging.warning('calibrate found no product that consumes a weight: params must be the first '
                    'argument of apply_fn, and reach the model through it.')
  return stats


def _check_weights(params):
  leaves, _ = names.named_leaves(params)
  for leaf in leaves:
    for part in jax.tree.leaves(leaf.value):
      floating = jaxprs.is_array(part) and jnp.issubdtype(part.dtype, jnp.inexact)
      if floating and bool(np.asarray(jnp.isnan(part).any())):
        raise ValueError(f'The weight {leaf.name!r} holds NaN; calibration needs finite weights.')
