"""Calibration: statistics of a model's inputs to each weight, over batches of data."""

import functools
from typing import Any, Callable, Iterable

import jax
import jax.numpy as jnp
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
  @jax.jit
  def finish(values):
    stats = {name: jax.tree.map(lambda a: a.astype(jnp.float32), observer.finish(value))
             for name, value in values.items()}
    return stats, {name: _all_of(jnp.isfinite, statistic) for name, statistic in stats.items()}

  finished, finite = finish({name: seen.value for name, seen in total.items()})
  stats = {}
  for name, seen in sorted(total.items()):
    if seen.flag is not None and not bool(seen.flag):
      logging.warning('%s: no batch reached an operation that uses it, so it has no statistic.',
                      name)
      continue
    if not finite[name]:
      raise ValueError(f'The statistic of {name!r} is not finite: an input to it is NaN or '
                       'infinite, or too large to square in float32, or no row reached it.')
    stats[name] = finished[name]
  if not stats:
    logging.warning('calibrate found no product that consumes a weight: params must be the first '
                    'argument of apply_fn, and reach the model through it.')
  return stats


def _check_weights(params):
  leaves, _ = names.named_leaves(params)
  parts = {leaf.name: [part for part in jax.tree.leaves(leaf.value) if jaxprs.is_array(part)
                       and jnp.issubdtype(part.dtype, jnp.inexact)] for leaf in leaves}
  sound = jax.jit(lambda parts: {name: _all_of(lambda x: ~jnp.isnan(x), part)
                                 for name, part in parts.items()})(parts)
  for name in parts:
    if not sound[name]:
      raise ValueError(f'The weight {name!r} holds NaN; calibration needs weights that do not.')


def _all_of(test, tree):
  return jnp.all(jnp.array([test(x).all() for x in jax.tree.leaves(tree)], bool))
