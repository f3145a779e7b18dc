"""`grouped_matmul`: rows sorted by group, each times its own group's matrix (dropless experts).

The contract is that of `jax.lax.ragged_dot`, which on CPUs and TPUs multiplies every row by every
group's matrix. Here the work follows the rows: the blocks of Gale et al., "MegaBlocks: Efficient
Sparse Training with Mixture-of-Experts" (arXiv:2211.15841), as tiles whose number is known at run
time (`groups_xla`) or as a grid of visits to tiles (`groups_tpu`). Sizes of groups are data:
another routing recompiles nothing. Both gradients are grouped products too, written by hand.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.kernels import groups_xla
from jaxsparse.kernels import manual_axes
from jaxsparse.numerics import explicit_axes

BACKENDS = ('xla', 'pallas_tpu')


class _How(NamedTuple):
  """What is static about a product."""

  backend: str
  interpret: bool


def _place(out, x, w, group_sizes, **how):
  del out, group_sizes, how
  return [jax.P(explicit_axes.spec_of(x)[0], explicit_axes.spec_of(w)[2])]


@explicit_axes.left_to_xla(_place)
def grouped_matmul(x: jax.Array, w: jax.Array, group_sizes: jax.Array, *,
                   backend: str | None = None, interpret: bool = False) -> jax.Array:
  """`x[i] @ w[g]` for every row i, where g is the group that holds row i.

  Differentiable in `x` and `w` (reverse mode). A row does not see another group's values, NaN and
  Inf included. `vmap` runs the elements of the batch one after another.

  Args:
    x: `[M, K]`, floating; the rows of group 0 come first, then those of group 1, and so on.
    w: `[G, K, N]`, floating.
    group_sizes: integers `[G]`, not negative; they may be zero, and one may be M. Rows after the
      last group give zeros; what exceeds M is ignored.
    backend: 'xla', 'pallas_tpu', or None for the device's own.
    interpret: runs a Pallas kernel without its hardware, slowly.

  Returns:
    `[M, N]` of the common dtype of `x` and `w`; sums are float32.

  Raises:
    TypeError: `x` or `w` is not floating, or `group_sizes` no integers.
    ValueError: shapes do not fit each other, or the backend is not known.

  Example:
    >>> x = jnp.ones((4, 2))
    >>> w = jnp.stack([jnp.eye(2), 10 * jnp.eye(2)])
    >>> grouped_matmul(x, w, jnp.array([1, 2])).tolist()
    [[1.0, 1.0], [10.0, 10.0], [10.0, 10.0], [0.0, 0.0]]
  """
  x, w, group_sizes = jnp.asarray(x), jnp.asarray(w), jnp.asarray(group_sizes)
  _check(x, w, group_sizes)
  if backend is None:
    backend = 'pallas_tpu' if jax.default_backend() == 'tpu' else 'xla'
  if backend not in BACKENDS:
    raise ValueError(f'backend must be one of {", ".join(BACKENDS)} or None, got {backend!r}.')
  dtype = jnp.result_type(x, w)
  if not x.size or not w.size:
    return jnp.zeros((x.shape[0], w.shape[2]), dtype)
  # In 32 bits a sum of sizes beyond M might wrap around; no size beyond M means more than M.
  sizes = jnp.clip(group_sizes, 0, x.shape[0]).astype(jnp.int32)
  ends = jax.lax.associative_scan(lambda a, b: jnp.minimum(a + b, x.shape[0]), sizes)
  operands = manual_axes.alike(x.astype(dtype), w.astype(dtype), ends)
  return _product(_How(backend, interpret), *operands)


def _check(x, w, group_sizes):
  for word, value in (('x', x), ('w', w)):
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise TypeError(f'{word} must be floating, got {value.dtype}.')
  if not jnp.issubdtype(group_sizes.dtype, jnp.integer):
    raise TypeError(f'group_sizes must hold integers, got {group_sizes.dtype}.')
  if (x.ndim != 2 or w.ndim != 3 or x.shape[1] != w.shape[1]
      or group_sizes.shape != (w.shape[0],)):
    raise ValueError('expected x [M, K], w [G, K, N] and group_sizes [G], found '
                     f'{x.shape}, {w.shape} and {group_sizes.shape}.')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how, x, w, ends):
  return _forward(how, False)(x, w, ends)


def _with_residuals(how, x, w, ends):
  return _product(how, x, w, ends), (x, w, ends)


def _gradients(how, saved, dy):
  x, w, ends = saved
  dx = _forward(how, True)(dy, w, ends)
  return dx, _weight_gradient(how)(x, dy, ends).astype(w.dtype), None


_product.defvjp(_with_residuals, _gradients)


@functools.cache
def _forward(how, transposed):
  if how.backend == 'xla':
    return jax.custom_batching.sequential_vmap(
        functools.partial(groups_xla.forward, transposed=transposed))
  from jaxsparse.kernels import groups_tpu
  return jax.custom_batching.sequential_vmap(
      functools.partial(groups_tpu.forward, transposed=transposed, interpret=how.interpret))


@functools.cache
def _weight_gradient(how):
  if how.backend == 'xla':
    return jax.custom_batching.sequential_vmap(groups_xla.weight_gradient)
  from jaxsparse.kernels import groups_tpu
  return jax.custom_batching.sequential_vmap(
      functools.partial(groups_tpu.weight_gradient, interpret=how.interpret))
