"""Quantization of activations, where they meet a weight."""

import dataclasses
import functools
from typing import Any, Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.formats import integer_product
from jaxsparse.numerics import explicit_axes
from jaxsparse.numerics import grids
from jaxsparse.numerics import rounding
from jaxsparse.numerics import scales
from jaxsparse.trace import hooks
from jaxsparse.trace import observers
from jaxsparse.trace import products

GRANULARITIES = ('tensor', 'row')


def quantize_activations(apply_fn: Callable, dtype: str = 'int8', *, granularity: str = 'tensor',
                         ranges: Mapping[str, Any] | None = None,
                         weights: str | None = None) -> Callable:
  """Rounds the input of every product with a weight to a grid.

  Scales are dynamic, `s = max |x| / limit`, or static, of calibrated `ranges`; then `x <- s
  clip(round(x / s))`, with a straight-through gradient. Inputs of a weight that `smoothquant`
  stored are divided by its row scales first. A weight packed with integer codes and one scale a
  column or matrix is multiplied as integers, int8 x int8 -> int32, from two rows on. Lookups are
  left alone; so are products of two activations. Nothing stays float unnoticed: a weight that was
  to be taken and met no product, because something else was done to it first, is an error.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    dtype: the grid, as spelled for weights: 'int8', 'int4', ...; 'uint8' has zero points.
    granularity: 'tensor' (one scale a product) or 'row' (one for each row that is multiplied: a
      token; for a convolution an example), which is dynamic.
    ranges: static scales: {weight name: statistic} of `calibrate(apply_fn, params, batches,
      jsp.range)`, or of `jsp.input_max`, which serves weights of `smoothquant` too. Matrices of a
      stack share the widest range.
    weights: a regular expression for the names of the weights whose inputs are rounded. None: all
      that meet a product, and every stored format must meet one, or a lookup.

  Returns:
    A function of the same arguments and result; `params` may hold formats.

  Raises:
    ValueError: an unknown grid or granularity, rows with `ranges`; in the call, where a weight that
      was to be taken meets no product, or has no range, or one that does not fit.

  Example:
    >>> fn = quantize_activations(lambda params, x: x @ params['w'], 'int4')
    >>> fn({'w': jnp.eye(3)}, jnp.array([[7.0, 2.2, -3.4]])).tolist()
    [[7.0, 2.0, -3.0]]
    >>> import jaxsparse as jsp
    >>> fn, params = lambda params, x: x @ params['w'], {'w': jnp.eye(2)}
    >>> ranges = jsp.calibrate(fn, params, [jnp.array([[-7.0, 1.0]])], jsp.range)
    >>> quantize_activations(fn, 'int4', ranges=ranges)(params, jnp.array([[0.7, 9.0]])).tolist()
    [[1.0, 7.0]]
  """
  grid = grids.grid(dtype)
  if granularity not in GRANULARITIES:
    raise ValueError(f'granularity is one of {", ".join(GRANULARITIES)}; got {granularity!r}.')
  if ranges is not None and granularity != 'tensor':
    raise ValueError('ranges are of whole tensors; a scale for each row is dynamic: leave out one '
                     'of ranges= and granularity=.')
  pattern = None if weights is None else names.compile_pattern(weights)

  @functools.wraps(apply_fn)
  def call(params, *args, **kwargs):
    def take(contraction, x, w):
      x, w, rows = _smoothed(contraction, x, w)
      integers = (contraction.kind == 'dot' and integer_product.contracts_integers(w, grid)
                  and contraction.takes(w))
      if integers and granularity == 'row':
        return contraction.compute(x, integer_product.IntegerProduct(w, None, grid))
      if ranges is None:
        axes = None if granularity == 'tensor' else within_row(contraction, x)
        scale = _dynamic(x.astype(jnp.float32), grid, axes)
      else:
        scale = _static(contraction, ranges, grid, rows)
      if integers:
        return contraction.compute(x, integer_product.IntegerProduct(w, scale.scale, grid))
      return contraction.compute(_rounded(x, grid, scale), w)

    also = (ranges or ()) if pattern is None else ()
    out, missed = at_products(apply_fn, pattern, take, also)(params, *args, **kwargs)
    if missed:
      raise ValueError(f'{", ".join(sorted(missed))}: no product took the weight, so that its '
                       'inputs would stay float; multiply by it as it is, or leave it out of the '
                       'ranges, the pattern or the compression.')
    return out

  return call


def at_products(apply_fn: Callable, pattern: Any, take: Callable, also=()) -> Callable:
  """`apply_fn` with something else in place of its float products with weights.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    pattern: compiled, of the names of the weights whose products are taken; None: of all.
    take: `(contraction, x, w) -> y` stands for such a product; lookups are left alone.
    also: names of more weights that are to meet a product.

  Returns:
    `run(params, *args, **kwargs) = (out, missed)`: the names of the weights that were to meet a
    product (of the pattern; without one all that are stored) and met none.
  """
  def run(params, *args, **kwargs):
    needed, met = {*_wanted(params, pattern), *also}, set()

    def hook(contraction, x, w):
      name = contraction.name
      if contraction.kind == 'gather' or not jnp.issubdtype(x.dtype, jnp.floating) or (
          pattern is not None and not pattern.fullmatch(name)):
        met.update([name] if pattern is None else [])
        return contraction.compute(x, w), None
      met.add(name)
      return take(contraction, x, w), None

    out, _ = hooks.watching(apply_fn, hook, None)(params, *args, **kwargs)
    return out, needed - met

  return run


def _wanted(params, pattern) -> set[str]:
  """Names of the weights that are to meet a product: those of the pattern, or stored formats."""
  leaves = names.named_leaves(params)[0]
  if pattern is None:
    return {leaf.name for leaf in leaves if formats.is_format(leaf.value)}
  found = {leaf.name for leaf in leaves if pattern.fullmatch(leaf.name)
           and (leaf.is_weight or formats.is_format(leaf.value))}
  if not found:
    raise ValueError(f'no weight matches {pattern.pattern!r}; there are '
                     f'{", ".join(leaf.name for leaf in leaves)}.')
  return found


def _dynamic(values, grid, axes) -> scales.Scale:
  axes = tuple(range(values.ndim)) if axes is None else axes
  return scales.of_range(*scales.extremes(jax.lax.stop_gradient(values), axes), grid)


def _static(contraction, ranges, grid, rows) -> scales.Scale:
  """The scale of a calibrated range; `rows` are what inputs were divided by, or None."""
  name = contraction.name
  if name not in ranges:
    raise ValueError(f'{name}: it has no range; calibrate(apply_fn, params, batches, jsp.range) '
                     'finds one for each weight of a product, or leave it out with weights=.')
  found = explicit_axes.closed_over(ranges[name])
  if isinstance(found, observers.Range):
    if rows is not None:
      raise ValueError(f'{name}: smoothquant divides its inputs, whose range is then another; pass '
                       'ranges=calibrate(apply_fn, params, batches, jsp.input_max).')
    low, high = jnp.minimum(found.low, 0).min(), jnp.maximum(found.high, 0).max()
    return scales.of_range(low, high, grid)
  if not hasattr(found, 'shape') or _is_gram(contraction, found):
    what = f'an array {found.shape}' if hasattr(found, 'shape') else repr(found)
    raise ValueError(f'{name}: its range must be a statistic of jsp.range or jsp.input_max, found '
                     f'{what}.')
  if rows is not None:
    if found.shape[-1] != rows.shape[-2]:
      raise ValueError(f'{name}: a largest input of shape {found.shape} does not fit row scales '
                       f'{rows.shape}.')
    found = found / rows[..., 0]
  return scales.of_range(-found.max(), found.max(), grid)


def _is_gram(contraction, found) -> bool:
  """Whether a statistic is `X^T X` rather than a number for each input of a product."""
  roles = contraction.axes
  if contraction.kind != 'dot' or roles is None:
    return False
  batch = len(contraction.shape) - len(roles.reduction) - len(roles.output)
  return found.ndim == batch + 2 and found.shape[-2] == found.shape[-1]


def _smoothed(contraction, x, w):
  """`x` divided by the row scales a stored weight was multiplied by, the weight without, and them.

  What is left as it is comes back with None.
  """
  rows = getattr(w, 'input_scale', None)
  if rows is None or contraction.kind != 'dot' or not contraction.takes(w):
    return x, w, None
  numbers, shared = products.weight_on_the_right(contraction, w)
  if shared:
    return x, w, None
  layout = w.layout
  (x_contracted, w_contracted), (x_batch, w_batch) = numbers
  partner = dict(zip((*w_contracted, *w_batch), (*x_contracted, *x_batch)))
  natural = (*layout.batch, *layout.axes.reduction)
  places = [partner[a] for a in natural]
  scale = rows.reshape([layout.shape[a] for a in natural]).transpose(np.argsort(places))
  scale = scale.reshape([x.shape[a] if a in places else 1 for a in range(x.ndim)])
  return (x / scale).astype(x.dtype), dataclasses.replace(w, input_scale=None), rows


def _rounded(x: jax.Array, grid: grids.Grid, scale: scales.Scale) -> jax.Array:
  steps = x.astype(jnp.float32) / scale.scale
  values = (grid.decode(grid.encode(steps, scale.zero), scale.zero) if grid.zero_point
            else grid.nearest(steps)) * scale.scale
  values = jnp.where(jnp.isnan(steps), jnp.nan, values)   # it has a code, but must not be hidden
  return rounding.straight_through(x, values.astype(x.dtype))


def within_row(contraction, x):
  """Axes of `x` that one row spans."""
  if contraction.kind == 'dot':
    return tuple(contraction.params['dimension_numbers'][0][contraction.input])
  if contraction.kind == 'conv':
    examples = contraction.params['dimension_numbers'].lhs_spec[0]
    return tuple(a for a in range(x.ndim) if a != examples)
  numbers = contraction.params['ragged_dot_dimension_numbers']
  return tuple(numbers.dot_dimension_numbers[0][0])
