"""`quantized_matmul`: a product with integer codes that a device holds in their own dtype.

The weight is `codes * scale`, codes int8 or int4 `[K, N]`, one scale a column or one for each
`group` rows of a column. XLA:TPU converts codes on their way into the product, so what is read from
memory is the codes: 0.50 and 0.25 of bfloat16's bytes, and no temporary. Scales of groups it would
multiply into a whole weight first, so those have a Pallas kernel. With activations rounded to eight
bits too the contraction is one of integers, int8 x int8 -> int32 (Jacob et al., arXiv:1712.05877).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.kernels import sums
from jaxsparse.numerics import explicit_axes

BACKENDS = ('xla', 'pallas_tpu')


class _How(NamedTuple):
  """What is static about a product."""

  backend: str
  activations: str | None
  interpret: bool


def _place(out, x, codes, scale, **how):
  del out, scale, how
  return [jax.P(*explicit_axes.spec_of(x)[:-1], explicit_axes.spec_of(codes)[1])]


@explicit_axes.left_to_xla(_place)
def quantized_matmul(x: jax.Array, codes: jax.Array, scale: jax.Array, *,
                     activations: str | None = None, backend: str | None = None,
                     interpret: bool = False) -> jax.Array:
  """`x @ (codes * scale)`, differentiable in `x` and `scale`.

  Gradients are those of the product with the decoded weight; rounding of activations is passed
  straight through.

  Args:
    x: `[..., K]`, floating.
    codes: int8 or int4 `[K, N]`.
    scale: floating `[G, N]` where G divides K: each row of scales is for K / G rows of codes.
    activations: 'int8' rounds each row of `x` by its largest magnitude, one scale a row, and
      contracts integers; scales of the weight must be one a column. A row with a NaN or an Inf
      gives NaN. None multiplies in the dtype of `x`.
    backend: 'xla', 'pallas_tpu' (scales in groups of a multiple of 32 rows), or None for the
      device's own.
    interpret: runs a Pallas kernel without its hardware, slowly.

  Returns:
    `[..., N]` of the dtype of `x`; sums are float32, or int32.

  Raises:
    TypeError: `x` or `scale` is not floating, or `codes` are neither int8 nor int4.
    ValueError: shapes do not fit each other, or the backend is not known or does not take them.

  Example:
    >>> codes = jnp.array([[1, -2], [3, 4]], jnp.int8)
    >>> quantized_matmul(jnp.ones((1, 2)), codes, jnp.array([[0.5, 2.0]])).tolist()
    [[2.0, 4.0]]
  """
  x, codes, scale = jnp.asarray(x), jnp.asarray(codes), jnp.asarray(scale)
  _check(x, codes, scale, activations)
  backend = _chosen(backend, codes, scale)
  outputs = codes.shape[1]
  if not x.size or not codes.size:
    return jnp.zeros((*x.shape[:-1], outputs), x.dtype)
  how = _How(backend, activations, interpret)
  out = _product(how, x.reshape(-1, x.shape[-1]), codes, scale)
  return out.reshape(*x.shape[:-1], outputs)


def _check(x, codes, scale, activations):
  for word, value in (('x', x), ('scale', scale)):
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise TypeError(f'{word} must be floating, got {value.dtype}.')
  if codes.dtype not in (jnp.int8, jnp.int4):
    raise TypeError(f'codes must be int8 or int4, got {codes.dtype}.')
  fits = x.ndim >= 1 and codes.ndim == scale.ndim == 2 and x.shape[-1] == codes.shape[0]
  fits = fits and scale.shape[1] == codes.shape[1] and scale.shape[0] > 0
  if not fits or codes.shape[0] % scale.shape[0]:
    raise ValueError('expected x [..., K], codes [K, N] and scale [G, N] with G dividing K, found '
                     f'{x.shape}, {codes.shape} and {scale.shape}.')
  if activations not in (None, 'int8'):
    raise ValueError(f"activations must be None or 'int8', got {activations!r}.")
  if activations and scale.shape[0] != 1:
    raise ValueError('a contraction of integers takes one scale a column, found '
                     f'{scale.shape[0]} of them; use activations=None.')


def _chosen(backend, codes, scale):
  group = codes.shape[0] // scale.shape[0]
  grouped = scale.shape[0] > 1
  if backend is None:
    mosaic = jax.default_backend() == 'tpu' and grouped and not group % 32
    return 'pallas_tpu' if mosaic else 'xla'
  if backend not in BACKENDS:
    raise ValueError(f'backend must be one of {", ".join(BACKENDS)} or None, got {backend!r}.')
  if backend == 'pallas_tpu' and (not grouped or group % 32):
    raise ValueError(f'pallas_tpu takes groups of a multiple of 32 rows, found {scale.shape[0]} '
                     f"of {group}; use backend='xla'.")
  return backend


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how, x, codes, scale):
  if how.backend == 'pallas_tpu':
    from jaxsparse.kernels import quantized_tpu
    return quantized_tpu.forward(x, codes, scale, interpret=how.interpret)
  if how.activations:
    return _integer(x, codes, scale)
  if scale.shape[0] > 1:
    return x @ _decoded(codes, scale).astype(x.dtype)
  out = jnp.dot(x, codes.astype(x.dtype), preferred_element_type=sums.wide(x.dtype))
  return (out * scale.astype(out.dtype)).astype(x.dtype)


def _with_residuals(how, x, codes, scale):
  return _product(how, x, codes, scale), (x, codes, scale)


def _gradients(how, saved, dy):
  del how
  x, codes, scale = saved
  _, pull = jax.vjp(lambda x, scale: x @ _decoded(codes, scale).astype(x.dtype), x, scale)
  dx, dscale = pull(dy)
  return dx, None, dscale


_product.defvjp(_with_residuals, _gradients)


def _decoded(codes, scale):
  groups, outputs = scale.shape
  values = codes.astype(scale.dtype).reshape(groups, -1, outputs) * scale[:, None]
  return values.reshape(codes.shape)


def _integer(x, codes, scale):
  rows = x.astype(sums.wide(x.dtype))
  peak = jnp.abs(rows).max(-1, keepdims=True)
  step = jnp.where(peak == 0, 1, peak / 127)
  rounded = jnp.clip(jnp.rint(rows / step), -127, 127).astype(jnp.int8)
  out = jax.lax.dot_general(rounded, codes.astype(jnp.int8), (((1,), (0,)), ((), ())),
                            preferred_element_type=jnp.int32)
  # A step of NaN or Inf makes the row NaN, whatever its integers are.
  out = out.astype(step.dtype) * jnp.where(jnp.isfinite(step), step, jnp.nan)
  return (out * scale.astype(step.dtype)).astype(x.dtype)
