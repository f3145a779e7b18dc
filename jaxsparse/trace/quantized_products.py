"""Products of few bits in training, forward and backward: a hook.

For `y = x w` and a gradient g of y, all three products are of codes:

  forward   `y  = Q(x) Q(w)`                       rounded to nearest
  backward  `dx = S(g) S(w)^T`, `dw = S(x)^T S(g)`  rounded by chance, so that their mean is exact

Each operand has a scale along every axis that its product keeps, `s = max|.| / limit`, dynamic;
products of int8 are summed in int32, of float8 in float32. Rounding by chance uses a counter hash
(`numerics.rounding.noise`): threefry would cost more than the product gains. Wang et al., "Training
Deep Neural Networks with 8-bit Floating Point Numbers" (arXiv:1812.08011), and Banner et al.,
"Scalable Methods for 8-bit Training of Neural Networks" (arXiv:1805.11046); e4m3 forward and e5m2
for gradients is Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv:2209.05433), section 4.
"""

import functools
import math
import zlib
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.formats import integer_product
from jaxsparse.numerics import explicit_axes
from jaxsparse.numerics import grids
from jaxsparse.numerics import hashing
from jaxsparse.numerics import rounding
from jaxsparse.numerics import scales
from jaxsparse.trace import activations
from jaxsparse.trace import contraction as contractions


def quantized_products(apply_fn: Callable, dtype: str = 'int8', *,
                       gradient_dtype: str | None = None, weights: str | None = None,
                       seed: int = 0) -> Callable:
  """Computes the products with weights, and those of their gradients, on codes of few bits.

  Params, and what optimizers do to them, stay as they are. Products of two activations and lookups
  are left alone. A convolution, or a product of rows sorted by group, has one scale an operand and
  is computed on the decoded values.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    dtype: the grid of inputs and weights: 'int3' to 'int8', 'float8_e4m3' or 'float8_e5m2'.
    gradient_dtype: that of gradients, and of what they are multiplied by; 'float32' leaves the
      products of gradients alone, with the rounded inputs and weights in them: straight through.
      None: `dtype` of integers, 'float8_e5m2' for gradients alone of floats.
    weights: a regular expression for the names of the weights whose products are taken. None: all
      that meet a product.
    seed: of the noise.

  Returns:
    `run(params, count, *args, **kwargs)`: `count` is the number of the step, an integer or an
    integer array, of which the noise of gradients is made. Matrices that a scan slices share it.

  Raises:
    ValueError: a grid without a product of codes; in the call, where a weight of the pattern meets
      no product, and would stay float.

  Example:
    >>> run = quantized_products(lambda params, x: x @ params['w'], 'int8')
    >>> params, x = {'w': jnp.array([[127.0], [30.4]])}, jnp.array([[127.0, 10.0]])
    >>> run(params, 0, x).tolist()
    [[16429.0]]
    >>> jax.grad(lambda params: run(params, 0, x).sum())(params)['w'].ravel().tolist()
    [127.0, 10.0]
  """
  values = _usable(dtype)
  if gradient_dtype == 'float32':
    chosen = _Grids(values, None, None)
  elif gradient_dtype is not None:
    chosen = _Grids(values, *[_usable(gradient_dtype)] * 2)
  else:
    chosen = _Grids(values, values if values.is_integer else grids.grid('float8_e5m2'), values)
  hashing.check_seed(seed)
  pattern = None if weights is None else names.compile_pattern(weights)

  @functools.wraps(apply_fn)
  def call(params, count, *args, **kwargs):
    def take(contraction, x, w):
      if formats.is_format(w):
        w = contractions.dense(w, contraction.origin, contraction.dtype)
      place = zlib.crc32(f'{contraction.name} {contraction.site}'.encode())
      noise = rounding.mix(seed, place, explicit_axes.closed_over(count))
      return _differentiable(contraction, chosen)(x, w, noise)

    out, missed = activations.at_products(apply_fn, pattern, take)(params, *args, **kwargs)
    if missed:
      raise ValueError(f'{", ".join(sorted(missed))}: no product took the weight, which '
                       'would stay float; multiply by it as it is, or leave it out of the pattern.')
    return out

  return call


def _usable(dtype) -> grids.Grid:
  grid = grids.grid(dtype)
  if not (grid.is_integer and grid.low == -grid.high or grid.floating and grid.bits == 8):
    raise ValueError(f"products of codes are of 'int3' to 'int8', 'float8_e4m3' and 'float8_e5m2'; "
                     f'got {dtype!r}.')
  return grid


class _Grids(NamedTuple):
  """Grids of inputs and weights forward; of gradients, and of what they meet, backward, or None."""

  values: grids.Grid
  gradient: grids.Grid | None
  partner: grids.Grid | None


def _differentiable(contraction, chosen: _Grids):
  """`(x, w, seed) -> y`, with the derivatives of the module's docstring."""
  made = _of_dot(contraction) if contraction.kind == 'dot' else _of_other(contraction)
  product, pull, near = made

  def forward(x, w, seed):
    return product(x, w, chosen.values), (x, w, seed)

  def backward(kept, g):
    x, w, seed = kept
    if chosen.gradient is None:
      to_x, to_w = jax.vjp(contraction.compute, *near(x, w, chosen.values))[1](g)
    else:
      to_x, to_w = pull(x, w, g, chosen, seed)
    return to_x.astype(x.dtype), to_w.astype(w.dtype), np.zeros(seed.shape, jax.dtypes.float0)

  taken = jax.custom_vjp(lambda x, w, seed: forward(x, w, seed)[0])
  taken.defvjp(forward, backward)
  return taken


def _of_dot(contraction):
  """The product of a dot, its pullback, and what is multiplied; codes over labelled axes."""
  (left, right), (left_batch, right_batch) = contraction.params['dimension_numbers']
  flipped = contraction.operand == 0

  def labels(x, w):
    a, b = (w.ndim, x.ndim) if flipped else (x.ndim, w.ndim)
    first, second = list(range(a)), list(range(a, a + b))
    for i, j in zip((*left, *left_batch), (*right, *right_batch)):
      second[j] = i
    free = [n for n in range(a) if n not in (*left, *left_batch)]
    out = [*left_batch, *free, *(n for n in second if n >= a)]
    return (second, first, out) if flipped else (first, second, out)

  def product(x, w, grid):
    of_x, of_w, of_y = labels(x, w)
    return _summed(_codes(x, of_x, of_y, grid), _codes(w, of_w, of_y, grid), of_y).astype(
        contraction.params['preferred_element_type'] or jnp.result_type(x, w))

  def pull(x, w, g, chosen, seed):
    of_x, of_w, of_y = labels(x, w)
    code = lambda a, own, kept, grid, n: _codes(a, own, kept, grid, rounding.mix(seed, n))
    return (
        _summed(code(g, of_y, of_x, chosen.gradient, 0), code(w, of_w, of_x, chosen.partner, 1),
                of_x),
        _summed(code(g, of_y, of_w, chosen.gradient, 2), code(x, of_x, of_w, chosen.partner, 3),
                of_w))

  def near(x, w, grid):
    of_x, of_w, of_y = labels(x, w)
    return _values(x, of_x, of_y, grid), _values(w, of_w, of_y, grid)

  return product, pull, near


def _of_other(contraction):
  """The same of any product, on decoded values, with one scale an operand."""
  near = lambda x, w, grid: (_decoded(x, grid), _decoded(w, grid))
  product = lambda x, w, grid: contraction.compute(*near(x, w, grid))

  def pull(x, w, g, chosen, seed):
    near = [_decoded(a, chosen.partner, rounding.mix(seed, n)) for n, a in enumerate((x, w))]
    return jax.vjp(contraction.compute, *near)[1](
        _decoded(g, chosen.gradient, rounding.mix(seed, 2)))

  return product, pull, near


class _Codes(NamedTuple):
  """Codes of an operand, as numbers, and their scale along the axes that a product keeps."""

  values: jax.Array   # int8 or float8
  scale: jax.Array    # float32, 1 along the other axes
  labels: list


def _codes(a, labels, kept, grid, seed=None) -> _Codes:
  values = a.astype(jnp.float32)
  gone = tuple(n for n, label in enumerate(labels) if label not in kept)
  scale = scales.of_finite(values, gone, grid)
  if seed is None and grid.is_integer:
    codes = rounding.bytes_of(values / scale)   # the scale clips nothing
  elif seed is None:
    codes = grid.encode(values / scale)
  else:
    codes = grid.encode_by_chance(values / scale, rounding.uniform(a.shape, seed))
  if grid.floating is not None:
    codes = jax.lax.bitcast_convert_type(codes, jnp.dtype(grid.floating))
  return _Codes(codes, scale, labels)


def _summed(a: _Codes, b: _Codes, out: list) -> jax.Array:
  """float32 sums of products, over the labels that `out` leaves out."""
  integers = a.values.dtype == b.values.dtype == jnp.int8
  length = math.prod(size for size, label in zip(a.values.shape, a.labels) if label not in out)
  one, other = a.values, b.values
  if not integers or length > integer_product.LONGEST:
    kind = jnp.float32
    if integers or one.dtype != other.dtype:
      one, other = one.astype(kind), other.astype(kind)
  else:
    kind = jnp.int32
  sums = jnp.einsum(one, a.labels, other, b.labels, out, preferred_element_type=kind)

  def spread(codes):
    own = [n for n, label in enumerate(codes.labels) if label in out]
    places = [out.index(codes.labels[n]) for n in own]
    whole = codes.scale.transpose([*np.asarray(own, int)[np.argsort(places)],
                                   *(n for n in range(codes.scale.ndim) if n not in own)])
    shape = [1] * len(out)
    for n, place in zip(own, places):
      shape[place] = codes.scale.shape[n]
    return whole.reshape(shape)

  return sums.astype(jnp.float32) * spread(a) * spread(b)


def _decoded(a, grid, seed=None) -> jax.Array:
  return _values(a, list(range(a.ndim)), [], grid, seed)


def _values(a, labels, kept, grid, seed=None) -> jax.Array:
  """What the codes of `a` stand for, of its shape and dtype."""
  found = _codes(a, labels, kept, grid, seed)
  return (found.values.astype(jnp.float32) * found.scale).astype(a.dtype)
