"""Fake quantization of activations, where they meet a weight."""

import dataclasses
import functools
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import grids
from jaxsparse.numerics import rounding
from jaxsparse.trace import hooks
from jaxsparse.trace import products

GRANULARITIES = ('tensor', 'row')


def quantize_activations(apply_fn: Callable, dtype: str = 'int8', *,
                         granularity: str = 'tensor') -> Callable:
  """Rounds the input of every product with a weight to a grid, scaled by its own absmax.

  The scale is dynamic, so nothing is calibrated: `s = max |x| / limit`, `x <- s round(x / s)`,
  with a straight-through gradient. Inputs of a weight that `smoothquant` stored are divided by its
  row scales first. Lookups are left alone; so are products of two activations.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    dtype: the grid, as spelled for weights: 'int8', 'int4', ...
    granularity: 'tensor' (one scale a product) or 'row' (one for each row that is multiplied: a
      token; for a convolution an example).

  Returns:
    A function of the same arguments and result; `params` may hold formats.

  Raises:
    ValueError: an unknown grid or granularity.

  Example:
    >>> fn = quantize_activations(lambda params, x: x @ params['w'], 'int4')
    >>> fn({'w': jnp.eye(3)}, jnp.array([[7.0, 2.2, -3.4]])).tolist()
    [[7.0, 2.0, -3.0]]
  """
  grid = grids.grid(dtype)
  if granularity not in GRANULARITIES:
    raise ValueError(f'granularity is one of {", ".join(GRANULARITIES)}; got {granularity!r}.')

  def hook(contraction, x, w):
    if contraction.kind == 'gather' or not jnp.issubdtype(x.dtype, jnp.floating):
      return contraction.compute(x, w), None
    x, w = _smoothed(contraction, x, w)
    axes = None if granularity == 'tensor' else within_row(contraction, x)
    return contraction.compute(_quantize(x, grid, axes), w), None

  watched = hooks.watching(apply_fn, hook, None)

  @functools.wraps(apply_fn)
  def call(params, *args, **kwargs):
    return watched(params, *args, **kwargs)[0]

  return call


def _smoothed(contraction, x, w):
  """`x` divided by the row scales a stored weight was multiplied by, and the weight without."""
  rows = getattr(w, 'input_scale', None)
  if rows is None or contraction.kind != 'dot' or not contraction.takes(w):
    return x, w
  numbers, shared = products.weight_on_the_right(contraction, w)
  if shared:
    return x, w
  layout = w.layout
  (x_contracted, w_contracted), (x_batch, w_batch) = numbers
  partner = dict(zip((*w_contracted, *w_batch), (*x_contracted, *x_batch)))
  natural = (*layout.batch, *layout.axes.reduction)
  places = [partner[a] for a in natural]
  scale = rows.reshape([layout.shape[a] for a in natural]).transpose(np.argsort(places))
  scale = scale.reshape([x.shape[a] if a in places else 1 for a in range(x.ndim)])
  return (x / scale).astype(x.dtype), dataclasses.replace(w, input_scale=None)


def _quantize(x: jax.Array, grid: grids.Grid, axes) -> jax.Array:
  values = x.astype(jnp.float32)
  peak = jnp.abs(values).max(axes, keepdims=True, initial=0.0)
  scale = peak * np.float32(1.0 / grid.limit)
  scale = jax.lax.stop_gradient(jnp.where(scale >= np.finfo(np.float32).tiny, scale, 1.0))
  rounded = grid.decode(grid.encode(values / scale)) * scale
  return rounding.straight_through(x, rounded.astype(x.dtype))


def within_row(contraction, x):
  """Axes of `x` that one row spans."""
  if contraction.kind == 'dot':
    return tuple(contraction.params['dimension_numbers'][0][contraction.input])
  if contraction.kind == 'conv':
    examples = contraction.params['dimension_numbers'].lhs_spec[0]
    return tuple(a for a in range(x.ndim) if a != examples)
  numbers = contraction.params['ragged_dot_dimension_numbers']
  return tuple(numbers.dot_dimension_numbers[0][0])
