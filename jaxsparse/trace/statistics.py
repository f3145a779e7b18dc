"""Running an observer over batches, with one compiled program whatever is asked of it."""

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


def collector(apply_fn: Callable, observer: observers.Observer) -> Callable:
  """`collect(params, batches, only=None) -> {weight name: statistic}`, compiled once a batch shape.

  Args:
    apply_fn: called as `apply_fn(params, *batch)`.
    observer: what is observed. Of weights that are not in `only` nothing is computed, although
      they are in the program.
  """
  @functools.partial(jax.jit, static_argnums=1)
  def observe(arrays, static, chosen):
    params, args = static.merge(arrays)
    watched = hooks.watching(apply_fn, _hook(observer, chosen), observer.merge)
    return watched(params, *args)[1]

  @jax.jit
  def merge(a, b):
    return tracked.join(a, b, observer.merge)

  def collect(params, batches: Iterable, only=None) -> dict[str, Any]:
    chosen = None
    if only is not None:
      leaves, _ = names.named_leaves(params)
      chosen = {leaf.name: jnp.asarray(leaf.name in only) for leaf in leaves}
    total = None
    for batch in batches:
      args = batch if type(batch) is tuple else (batch,)
      found = observe(*jaxprs.split((params, args)), chosen)
      total = found if total is None else merge(total, found)
    if total is None:
      raise ValueError('calibrate was given no batches; pass at least one (a used-up iterator has '
                       'none left).')
    if only is not None:
      total = {name: seen for name, seen in total.items() if name in only}
    return _finished(total, observer)

  return collect


def _hook(observer, chosen):
  if chosen is None:
    return observers.hook_of(observer)

  def hook(contraction, x, w):
    observe = lambda x: observer.observe(contraction, x)
    like = jax.eval_shape(observe, x)
    nothing = lambda x: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    statistic = like if like is None else jax.lax.cond(chosen[contraction.name], observe, nothing,
                                                       x)
    return contraction.compute(x, w), statistic

  return hook


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
  return stats


def _all_of(test, tree):
  return jnp.all(jnp.array([test(x).all() for x in jax.tree.leaves(tree)], bool))


def check_weights(params: Any) -> None:
  """Raises ValueError, with its name, where a weight holds NaN."""
  leaves, _ = names.named_leaves(params)
  parts = {leaf.name: [part for part in jax.tree.leaves(leaf.value) if jaxprs.is_array(part)
                       and jnp.issubdtype(part.dtype, jnp.inexact)] for leaf in leaves}
  sound = jax.jit(lambda parts: {name: _all_of(lambda x: ~jnp.isnan(x), part)
                                 for name, part in parts.items()})(parts)
  for name in parts:
    if not sound[name]:
      raise ValueError(f'The weight {name!r} holds NaN; calibration needs weights that do not.')
