"""`block_sparse_matmul`: a product with a weight stored as balanced block panels.

Letters: a weight `[K, N]` is cut into blocks of `bk` rows and `bn` columns. *Panel* g holds the S
blocks kept in block column g, one below the other: `data[g]`, `[S * bk, bn]`; `kidx[g, s]` says
which block of rows the s-th is. S is static, the indices are data: another mask of the same balance
is the same program. The idea of sparse kernels for blocks is Gray et al., "GPU Kernels for
Block-Sparse Weights" (2017); equal panels are what lets XLA and a TPU's grid know every shape.

Forward, input gradient and weight gradient each cost what is stored, never what is dense.
"""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.kernels import manual_axes
from jaxsparse.kernels import panels_xla
from jaxsparse.numerics import explicit_axes

BACKENDS = ('xla', 'pallas_tpu', 'pallas_triton')


class _How(NamedTuple):
  """What is static about a product."""

  backend: str
  doubly_balanced: bool
  interpret: bool


def _place(out, x, data, kidx, **how):
  del out, kidx, how
  return [jax.P(*explicit_axes.spec_of(x)[:-1], explicit_axes.spec_of(data)[0])]


@explicit_axes.left_to_xla(_place)
def block_sparse_matmul(x: jax.Array, data: jax.Array, kidx: jax.Array, *,
                        doubly_balanced: bool = False, backend: str | None = None,
                        interpret: bool = False) -> jax.Array:
  """`x @ W` for a `W` of balanced block panels, differentiable in `x` and `data`.

  The size of a block is that of the panels: `bn = data.shape[2]`, `bk = data.shape[1] / S`. A
  weight whose edges are ragged is stored padded: `K` need not divide by `bk` (`x` is padded with
  zeros), and the caller cuts the columns beyond N. Slots that are not used hold zeros and any
  index; the weight gradient is that of the stored blocks, used or not.

  Args:
    x: `[..., K]`, floating.
    data: `[G, S * bk, bn]`, floating; S may be 0, and the product zero.
    kidx: int32 `[G, S]`, block rows in `[0, ceil(K / bk))`; others are clipped to it.
    doubly_balanced: promises that every block row is kept equally often too, so that Pallas can
      multiply by the transposed panels for the input gradient: a wrong promise is a wrong
      gradient there. Without it those products are XLA's, which add into place.
    backend: 'xla', 'pallas_tpu', 'pallas_triton', or None for the device's own: Pallas on TPUs
      and GPUs where the blocks fit it, XLA on everything else.
    interpret: runs a Pallas kernel without its hardware, slowly.

  Returns:
    `[..., G * bn]` of the common dtype of `x` and `data`; sums are float32, XLA's of float64
    operands float64.

  Raises:
    TypeError: `x` or `data` is not floating, or `kidx` no integer.
    ValueError: shapes do not fit each other, or the backend is not known, or does not take the
      blocks.

  Example:
    >>> x = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    >>> data = jnp.ones((3, 2, 1))                # three panels of one 2 x 1 block
    >>> kidx = jnp.array([[0], [1], [0]])         # rows 0 and 1, rows 2 and 3, rows 0 and 1
    >>> block_sparse_matmul(x, data, kidx).tolist()
    [[3.0, 7.0, 3.0]]
  """
  x, data, kidx = jnp.asarray(x), jnp.asarray(data), jnp.asarray(kidx)
  bk = _check(x, data, kidx)
  dtype = jnp.result_type(x, data)
  *outer, features = x.shape
  panels, depth, bn = data.shape
  if not x.size or not data.size:
    return jnp.zeros((*outer, panels * bn), dtype)
  how = _How(_chosen(backend, bk, bn), doubly_balanced, interpret)
  flat = jnp.pad(x.astype(dtype).reshape(-1, features), ((0, 0), (0, -features % bk)))
  index = jnp.clip(kidx.astype(jnp.int32), 0, flat.shape[1] // bk - 1)
  out = _product(how, *manual_axes.alike(flat, data.astype(dtype), index))
  return out.reshape(*outer, panels * bn)


def default_block(device_kind: str | None = None) -> int:
  """The side of a block that fills a device's matrix unit: 256 from TPU v6e on, 128 elsewhere.

  Args:
    device_kind: as in `jax.Device.device_kind`; the first device's when None.

  Example:
    >>> default_block('TPU v5 lite'), default_block('TPU v6 lite')
    (128, 256)
  """
  kind = jax.devices()[0].device_kind if device_kind is None else device_kind
  generation = re.match(r'TPU\s*v?(\d+)', kind)
  return 256 if generation and int(generation[1]) >= 6 else 128


def _check(x, data, kidx) -> int:
  """The rows of a block. Raises where the arguments do not fit each other."""
  for word, value in (('x', x), ('data', data)):
    if not jnp.issubdtype(value.dtype, jnp.floating):
      raise TypeError(f'{word} must be floating, got {value.dtype}.')
  if not jnp.issubdtype(kidx.dtype, jnp.integer):
    raise TypeError(f'kidx must hold integers, got {kidx.dtype}.')
  if x.ndim < 1 or data.ndim != 3 or kidx.ndim != 2 or kidx.shape[0] != data.shape[0]:
    raise ValueError('expected x [..., K], data [G, S * bk, bn] and kidx [G, S], found '
                     f'{x.shape}, {data.shape} and {kidx.shape}.')
  depth, slots = data.shape[1], kidx.shape[1]
  if bool(depth) != bool(slots) or (slots and depth % slots):
    raise ValueError(f'panels of {depth} rows do not divide into the {slots} blocks that kidx '
                     f'{kidx.shape} names; expected data [G, S * bk, bn].')
  return depth // slots if slots else 1


def _chosen(backend, bk, bn) -> str:
  if backend is None:
    wanted = {'tpu': 'pallas_tpu', 'gpu': 'pallas_triton'}.get(jax.default_backend(), 'xla')
    return wanted if _takes(wanted, bk, bn) is None else 'xla'
  if backend not in BACKENDS:
    raise ValueError(f'backend must be one of {", ".join(BACKENDS)} or None, got {backend!r}.')
  problem = _takes(backend, bk, bn)
  if problem is not None:
    raise ValueError(f'{backend} takes {problem}, found {bk} x {bn}; use backend=\'xla\'.')
  return backend


def _takes(backend, bk, bn) -> str | None:
  """What a backend wants of blocks that these are not."""
  if backend == 'pallas_tpu' and (bk % 128 or bn % 128):
    return 'blocks of multiples of 128'   # the lanes of a vector register
  if backend == 'pallas_triton' and any(n < 16 or n & (n - 1) for n in (bk, bn)):
    return 'blocks whose sides are powers of two from 16'   # what a tensor core multiplies
  return None


def _room(how):
  """The module of a backend, imported where it is chosen."""
  if how.backend == 'pallas_tpu':
    from jaxsparse.kernels import panels_tpu
    return panels_tpu
  from jaxsparse.kernels import panels_triton
  return panels_triton


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how, x, data, kidx):
  if how.backend == 'xla':
    return panels_xla.forward(x, data, kidx)
  return _room(how).forward(x, data, kidx, interpret=how.interpret)


def _forward(how, x, data, kidx):
  return _product(how, x, data, kidx), (x, data, kidx)


def _backward(how, saved, dy):
  x, data, kidx = saved
  bk = data.shape[1] // kidx.shape[1]
  blocks = x.shape[1] // bk
  if how.backend == 'xla':
    dx = panels_xla.input_gradient(dy, data, kidx, blocks)
    return dx, panels_xla.weight_gradient(x, dy, kidx, bk), None
  room = _room(how)
  if how.doubly_balanced:
    dx = room.forward(dy, *transposed(data, kidx, blocks), interpret=how.interpret)
  else:
    dx = panels_xla.input_gradient(dy, data, kidx, blocks)
  return dx, room.weight_gradient(x, dy, kidx, bk, interpret=how.interpret), None


_product.defvjp(_forward, _backward)


def transposed(data: jax.Array, kidx: jax.Array, blocks: int) -> tuple[jax.Array, jax.Array]:
  """The panels of the transposed weight, where every one of `blocks` block rows is kept T times.

  Args:
    data: `[G, S * bk, bn]`.
    kidx: int32 `[G, S]`; each block row in it `T = G S / blocks` times.
    blocks: block rows.

  Returns:
    `(data [blocks, T * bn, bk], kidx [blocks, T])`.

  Raises:
    ValueError: `blocks` does not divide the number of blocks.

  Example:
    >>> panels = jnp.arange(4.0).reshape(2, 2, 1)           # two panels of one 2 x 1 block
    >>> there, index = transposed(panels, jnp.array([[1], [0]]), 2)
    >>> there.tolist(), index.tolist()
    ([[[2.0, 3.0]], [[0.0, 1.0]]], [[1], [0]])
  """
  (panels, depth, bn), slots = data.shape, kidx.shape[1]
  if panels * slots % blocks:
    raise ValueError(f'{panels * slots} blocks cannot be spread evenly over {blocks} block rows; '
                     'they are not doubly balanced.')
  order = jnp.argsort(kidx.reshape(-1), stable=True).reshape(blocks, -1)
  tiles = data.reshape(panels * slots, depth // slots, bn)[order]   # [blocks, T, bk, bn]
  tiles = tiles.transpose(0, 1, 3, 2).reshape(blocks, -1, depth // slots)
  return tiles, (order // slots).astype(jnp.int32)
