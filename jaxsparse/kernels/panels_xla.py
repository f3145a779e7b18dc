"""Products with panels in plain JAX: what every other backend is checked against, and the CPU's.

A scan over panels puts the columns of `x` that a panel reads side by side and multiplies them by
it: ordinary products that stay in cache and run on all threads. Small inputs are gathered for all
panels at once, as steps cost more than their memory traffic. Each slot is a slice of its own: XLA
makes one gather of them all a loop that divides for every entry, which takes as long as the product
(1.25 to 1.9 times in all, of 512 rows by 1024 x 1024).
"""

import jax
import jax.numpy as jnp

from jaxsparse.kernels import manual_axes
from jaxsparse.kernels import sums

# Bytes gathered at once, however many rows there are: what a second-level cache about holds.
_CACHED_BYTES = 2**21
# Columns from which a panel's products read x where it lies, and a slice is multiplied so too.
_WIDE = 128
# Rows of x from which narrow panels read its transpose.
_TALL = 64
# Slots of a panel that are read, and added to, one by one without a loop.
_UNROLLED = 32


def forward(x: jax.Array, data: jax.Array, kidx: jax.Array) -> jax.Array:
  """`[M, nk * bk]` times panels `[G, S * bk, bn]`: `[M, G * bn]` of x's dtype.

  Sums are float32, or wider where x is.
  """
  rows, (panels, depth, bn), slots = x.shape[0], data.shape, kidx.shape[1]
  bk = depth // slots
  if x.shape[1] == bk:   # one row block, which every slot reads: an ordinary product
    whole = data.reshape(panels, slots, bk, -1).sum(1)
    return _product(x, whole.transpose(1, 0, 2).reshape(bk, -1))
  by_block = x.reshape(rows, -1, bk)
  if rows * panels * depth * x.dtype.itemsize <= _CACHED_BYTES:
    there = _columns(by_block, kidx)
    out = jax.lax.dot_general(there, data, (((2,), (1,)), ((0,), (0,))),
                              preferred_element_type=sums.wide(x.dtype))
    return out.transpose(1, 0, 2).reshape(rows, panels * bn).astype(x.dtype)
  if bn < _WIDE and rows >= _TALL:
    return _by_features(x, data, kidx)

  def body(out, panel):
    i, indices, weights = panel
    part = _product(_columns(by_block, indices[None])[0], weights)
    return jax.lax.dynamic_update_slice_in_dim(out, part, i * bn, axis=1), None

  start, _ = manual_axes.alike(jnp.zeros((rows, panels * bn), x.dtype), x)
  return jax.lax.scan(body, start, (jnp.arange(panels), kidx, data))[0]


def _by_features(x, data, kidx):
  """`forward` of many narrow panels: blocks of the transposed x are copied whole."""
  (panels, depth, bn), slots = data.shape, kidx.shape[1]
  features = x.T.reshape(-1, depth // slots, x.shape[0])

  def body(_, panel):
    indices, weights = panel
    return None, _product(weights.T, _features(features, indices))

  out = jax.lax.scan(body, None, (kidx, data))[1]
  return out.reshape(panels * bn, -1).T


def _columns(by_block, kidx):
  """Columns `[panels, rows, slots * bk]` that panels read of x, `[rows, blocks, bk]`."""
  if kidx.shape[1] > _UNROLLED:
    there = jnp.take(by_block, kidx, axis=1, mode='clip').transpose(1, 0, 2, 3)
    return there.reshape(*there.shape[:2], -1)
  slots = (jnp.take(by_block, i, axis=1, mode='clip') for i in kidx.T)
  return jnp.concatenate([s.transpose(1, 0, 2) for s in slots], axis=2)


def _features(features, indices):
  """Rows `[slots * bk, rows]` that one panel reads of the transposed x, `[blocks, bk, rows]`."""
  if len(indices) > _UNROLLED:
    return _take(features, indices).reshape(-1, features.shape[2])
  return jnp.concatenate([
      jax.lax.dynamic_index_in_dim(features, i, keepdims=False) for i in indices])


def input_gradient(dy: jax.Array, data: jax.Array, kidx: jax.Array, blocks: int) -> jax.Array:
  """`[M, G * bn]` times the transposed weight, `blocks` row blocks of it: `[M, blocks * bk]`.

  Each panel adds to the columns that it read, so any layout has its exact gradient.
  """
  (panels, depth, bn), slots = data.shape, kidx.shape[1]
  bk, wide = depth // slots, sums.wide(dy.dtype)

  def body(out, panel):
    i, indices, weights = panel
    part = jnp.matmul(jax.lax.dynamic_slice_in_dim(dy, i * bn, bn, axis=1), weights.T,
                      preferred_element_type=wide)

    def add(slot, out):
      at = indices[slot] * bk
      added = (jax.lax.dynamic_slice_in_dim(part, slot * bk, bk, axis=1)
               + jax.lax.dynamic_slice_in_dim(out, at, bk, axis=1))
      return jax.lax.dynamic_update_slice_in_dim(out, added, at, axis=1)

    return jax.lax.fori_loop(0, slots, add, out, unroll=slots if slots <= _UNROLLED else 1), None

  start, _ = manual_axes.alike(jnp.zeros((len(dy), blocks * bk), wide), dy)
  return jax.lax.scan(body, start, (jnp.arange(panels), kidx, data))[0].astype(dy.dtype)


def weight_gradient(x: jax.Array, dy: jax.Array, kidx: jax.Array, bk: int) -> jax.Array:
  """The products `x_k^T dy_g` of the blocks that are kept alone: `[G, S * bk, bn]`."""
  panels, slots = kidx.shape
  bn = dy.shape[1] // panels
  alone = slots == 1 and bk >= _WIDE   # a slice is multiplied where it lies
  features = None if alone else x.T.reshape(-1, bk, x.shape[0])

  def body(_, panel):
    i, indices = panel
    here = jax.lax.dynamic_slice_in_dim(dy, i * bn, bn, axis=1)
    if not alone:
      there, rows = _take(features, indices).reshape(slots * bk, -1), 1
    else:
      there, rows = jax.lax.dynamic_slice_in_dim(x, indices[0] * bk, bk, axis=1), 0
    return None, jax.lax.dot_general(
        there, here, (((rows,), (0,)), ((), ())),
        preferred_element_type=sums.wide(x.dtype)).astype(x.dtype)

  return jax.lax.scan(body, None, (jnp.arange(panels), kidx))[1]


def _product(a, b):
  return jnp.matmul(a, b, preferred_element_type=sums.wide(a.dtype)).astype(a.dtype)


def _take(blocks, indices):
  return jnp.take(blocks, indices, axis=0, mode='clip')

