"""Running a stock model on packed weights."""

import functools
import math
from typing import Callable

import jax

from jaxsparse.formats import format as formats
from jaxsparse.formats import through
from jaxsparse.trace import costs as costs_of
from jaxsparse.trace import hooks


def dispatch(fn: Callable, *, costs: costs_of.Costs | None = None) -> Callable:
  """Makes `fn` accept formats in place of arrays in its first argument.

  Products, convolutions and lookups multiply by the stored form; transposes, casts and scans over
  layers carry it there. An operation without a rule (a reshape, elementwise arithmetic, a scan
  over another axis) gets the dense array, and the log says so once for each weight. Gradients flow
  to the float arrays inside formats. A stored stack may be sliced outside too, by `vmap`, `scan` or
  `jax.tree.map(lambda a: a[0], ...)`. Without a format in its arguments it is `fn` itself.

  Args:
    fn: called as `fn(params, *args, **kwargs)`, for example `lambda p, x: model.apply(p, x)`.
    costs: of `measure_costs` or `compile_costs`: each product takes the cheapest of its weight's
      `matmuls()` for the rows at hand. None multiplies as each format does by itself. A packed
      weight that no way makes as fast as a dense array is not for this function to hold dense:
      see `fastest`.

  Returns:
    The same function, of dense and packed weights alike.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> fn = lambda params, x: x @ params['w']
    >>> transform = jsp.nm(2, 4)
    >>> packed = transform.pack(*transform.init({'w': jnp.ones((8, 2))}))
    >>> dispatch(fn)(packed, jnp.ones((1, 8))).tolist()
    [[4.0, 4.0]]
  """
  def compute(contraction, x, w):
    if costs is not None and contraction.kind == 'dot' and formats.is_format(w):
      w = chosen(costs, contraction, x, w)
    return contraction.compute(x, w), None

  watched = hooks.watching(fn, compute, None)

  @functools.wraps(fn)
  def call(params, *args, **kwargs):
    if not any(map(formats.is_format, jax.tree.leaves(params, is_leaf=formats.is_format))):
      return fn(params, *args, **kwargs)
    return watched(params, *args, **kwargs)[0]

  return call


def chosen(costs, contraction, x, w):
  """The weight, to be multiplied in the cheapest way; a stack at once stays as it is."""
  if w.layout.batch or not w.size or not contraction.takes(w):
    return w
  way = costs.best(w, math.prod(x.shape) // w.layout.matrix_shape[-2])
  return w if way == 'stored' or way not in w.matmuls() else through.Through(w, way)
