"""Running a stock model on packed weights."""

import functools
from typing import Callable

import jax

from jaxsparse.formats import format as formats
from jaxsparse.trace import hooks


def dispatch(fn: Callable) -> Callable:
  """Makes `fn` accept formats in place of arrays in its first argument.

  Products, convolutions and lookups multiply by the stored form; transposes, casts and scans over
  layers carry it there. An operation without a rule (a reshape, elementwise arithmetic, a scan
  over another axis) gets the dense array, and the log says so once for each weight. Gradients flow
  to the float arrays inside formats.

  Args:
    fn: called as `fn(params, *args, **kwargs)`, for example `lambda p, x: model.apply(p, x)`.

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
    return contraction.compute(x, w), None

  watched = hooks.watching(fn, compute, None)

  @functools.wraps(fn)
  def call(params, *args, **kwargs):
    if not any(map(formats.is_format, jax.tree.leaves(params, is_leaf=formats.is_format))):
      return fn(params, *args, **kwargs)
    return watched(params, *args, **kwargs)[0]

  return call
