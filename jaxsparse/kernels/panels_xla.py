"""Products with panels in plain JAX: what every other backend is checked against, and the CPU's.

A scan over panels gathers the columns of `x` that a panel reads and multiplies them by it: ordinary
products that stay in cache and run on all threads. Panels too narrow for that are multiplied all
at once, a few rows at a time. One batched product of everything gathered takes 1.1 to 2 times as
long at 512 rows of 1024, whether it gathers rows or features (the latter transposes its input and
output besides); small inputs are gathered so, as steps cost more than their memory traffic.
"""

import math

import jax
import jax.numpy as jnp

# Bytes gathered at once, however many rows there are: half of the second-level cache.
_CACHED_BYTES = 2**19
# Columns from which a panel is a product worth a step of its own.
_WIDE = 128
# Rows multiplied by all narrow panels at once, and the most bytes that may gather.
_ROWS, _GATHERED_BYTES = 32, 2**22
# Slots of a panel whose input gradients are written one by one into place.
_UNROLLED = 32


def forward(x: jax.Array, data: jax.Array, kidx: jax.Array) -> jax.Array:
  """`[M, nk * bk]` times panels `[G, S * bk, bn]`, float32 sums: `[M, G * bn]` of x's dtype."""
  rows, panels = x.shape[0], data.shape[0]
  bk = data.shape[1] // kidx.shape[1]
  if x.shape[1] == bk:   # one row block, which every slot reads: an ordinary product
    whole = data.reshape(panels, kidx.shape[1], bk, -1).sum(1)
    return _product(x, whole.transpose(1, 0, 2).reshape(bk, -1))
  if rows == 1:
    gathered = _take(x.reshape(-1, bk), kidx).reshape(panels, -1)
    out = jax.lax.dot_general(gathered, data, (((1,), (1,)), ((0,), (0,))),
                              preferred_element_type=jnp.float32)
    return out.reshape(1, -1).astype(x.dtype)
  panel_bytes = data.shape[1] * x.dtype.itemsize
  if rows * panels * panel_bytes <= _CACHED_BYTES:
    return _scan(x, data, kidx, panels)
  if data.shape[2] >= _WIDE:
    return _scan(x, data, kidx, 1)
  together = _divisor(panels, _GATHERED_BYTES // (_ROWS * panel_bytes))
  tiles = -(-rows // _ROWS)
  padded = jnp.pad(x, ((0, tiles * _ROWS - rows), (0, 0))).reshape(tiles, _ROWS, -1)
  out = jax.lax.map(lambda part: _scan(part, data, kidx, together), padded)
  return out.reshape(tiles * _ROWS, -1)[:rows]


def _scan(x, data, kidx, together):
  (panels, depth, bn), slots = data.shape, kidx.shape[1]
  rows, bk = x.shape[0], depth // slots
  by_block = x.reshape(rows, -1, bk)
  if together > 1:
    by_block = by_block.transpose(1, 0, 2)

  def step(indices, weights):
    if together == 1:
      gathered = jnp.take(by_block, indices[0], axis=1, mode='clip')
      return _product(gathered.reshape(rows, depth), weights[0])
    weights = weights.reshape(together, slots, bk, bn)
    out = jax.lax.dot_general(_take(by_block, indices), weights, (((1, 3), (1, 2)), ((0,), (0,))),
                              preferred_element_type=jnp.float32)
    return out.transpose(1, 0, 2).reshape(rows, together * bn).astype(x.dtype)

  if together == panels:
    return step(kidx, data)

  def body(out, i):
    indices, weights = (jax.lax.dynamic_slice_in_dim(a, i * together, together)
                        for a in (kidx, data))
    return jax.lax.dynamic_update_slice_in_dim(
        out, step(indices, weights), i * together * bn, axis=1), None

  start = jnp.zeros((rows, panels * bn), x.dtype)
  return jax.lax.scan(body, start, jnp.arange(panels // together))[0]


def input_gradient(dy: jax.Array, data: jax.Array, kidx: jax.Array, blocks: int) -> jax.Array:
  """`[M, G * bn]` times the transposed weight, `blocks` row blocks of it: `[M, blocks * bk]`.

  Each panel adds to the columns that it read, so any layout has its exact gradient.
  """
  (panels, depth, bn), slots = data.shape, kidx.shape[1]
  rows, bk = dy.shape[0], depth // slots
  if slots > _UNROLLED:
    parts = jax.lax.dot_general(data, dy.reshape(rows, panels, bn), (((2,), (2,)), ((0,), (1,))),
                                preferred_element_type=jnp.float32)
    parts = parts.reshape(panels * slots, bk * rows)
    total = jax.ops.segment_sum(parts, jnp.clip(kidx, 0, blocks - 1).reshape(-1), blocks)
    return total.reshape(blocks * bk, rows).T.astype(dy.dtype)

  def body(out, panel):
    i, indices, weights = panel
    part = jnp.matmul(jax.lax.dynamic_slice_in_dim(dy, i * bn, bn, axis=1), weights.T,
                      preferred_element_type=jnp.float32)
    for slot in range(slots):
      at = indices[slot] * bk
      added = part[:, slot * bk:(slot + 1) * bk] + jax.lax.dynamic_slice_in_dim(out, at, bk, axis=1)
      out = jax.lax.dynamic_update_slice_in_dim(out, added, at, axis=1)
    return out, None

  start = jnp.zeros((rows, blocks * bk), jnp.float32)
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
      return None, _product(_take(features, indices).reshape(slots * bk, -1), here)
    there = jax.lax.dynamic_slice_in_dim(x, indices[0] * bk, bk, axis=1)
    return None, jax.lax.dot_general(there, here, (((0,), (0,)), ((), ())),
                                     preferred_element_type=jnp.float32).astype(x.dtype)

  return jax.lax.scan(body, None, (jnp.arange(panels), kidx))[1]


def _product(a, b):
  return jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(a.dtype)


def _take(blocks, indices):
  return jnp.take(blocks, indices, axis=0, mode='clip')


def _divisor(number: int, most: int) -> int:
  """The largest divisor of `number` that is at most `most`, or 1."""
  small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
  return max([d for s in small for d in (s, number // s) if d <= most], default=1)
