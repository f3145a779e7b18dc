"""What all native products share: the choice of backend, gradients and batching.

A product is `x [rows, R] @ W [R, O]`, float32, with `W` held as arrays that only its kernel reads.
Where the library is missing or the program is compiled for something other than a CPU, the XLA
formulation runs in its place and gives the same numbers.
"""

import math
from typing import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels import manual_axes
from jaxsparse.kernels.native import library


def product(x: jax.Array, operands: tuple[jax.Array, ...], outputs: int, *, target: str,
            same: Callable, smooth: Callable | None = None, **attributes) -> jax.Array:
  """`x @ W` by a native kernel.

  Args:
    x: `[..., rows, R]`, floating; multiplied in float32.
    operands: arrays of the kernel.
    outputs: columns of `W`.
    target: the kernel's name in the library.
    same: `(x, *operands) -> y`, what the kernel computes, in XLA.
    smooth: the same without rounding, which gradients are taken of; `same` where None.
    **attributes: integers the kernel takes.

  Returns:
    `[..., rows, outputs]` of x's dtype.

  Raises:
    TypeError: `x` is not floating.
  """
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f'Native products take floating inputs, got {x.dtype}.')
  rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(jnp.float32)
  chosen = _with_gradient(_by_platform(target, outputs, same, attributes), smooth or same)
  out = chosen(*manual_axes.alike(rows, *operands))
  return out.reshape(*x.shape[:-1], outputs).astype(x.dtype)


def _by_platform(target, outputs, same, attributes):
  if not library.available():
    return same

  @jax.custom_batching.custom_vmap
  def native(x, *operands):
    shape = jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    numbers = {k: np.int64(v) for k, v in attributes.items()}
    out = jax.ffi.ffi_call(f'jaxsparse_{target}', shape)(x, *operands, **numbers)
    return manual_axes.alike(out, x)[0]

  @native.def_vmap
  def batched(size, is_batched, x, *operands):
    if not any(is_batched[1:]):
      # More rows of one product.
      flat = x.reshape(x.shape[0] * x.shape[1], x.shape[2])
      return native(flat, *operands).reshape(*x.shape[:-1], outputs), True
    every = [a if b else jnp.broadcast_to(a, (size, *a.shape))
             for a, b in zip((x, *operands), is_batched)]
    return jax.lax.map(lambda one: native(*one), tuple(every)), True

  def choose(x, *operands):
    return jax.lax.platform_dependent(x, *operands, cpu=native, default=same)

  return choose


def _with_gradient(forward, smooth):
  @jax.custom_vjp
  def run(x, *operands):
    return forward(x, *operands)

  def run_forward(*args):
    return forward(*args), args

  def run_backward(args, g):
    floating = [jnp.issubdtype(a.dtype, jnp.floating) for a in args]

    def of_floats(*floats):
      floats = iter(floats)
      return smooth(*(next(floats) if f else a for a, f in zip(args, floating)))

    back = iter(jax.vjp(of_floats, *(a for a, f in zip(args, floating) if f))[1](g))
    return tuple(next(back) if f else np.zeros(a.shape, jax.dtypes.float0)
                 for a, f in zip(args, floating))

  run.defvjp(run_forward, run_backward)
  return run
