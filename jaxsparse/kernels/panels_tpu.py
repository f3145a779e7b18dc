"""Products with panels on TPUs, in Pallas.

Forward: a step of the grid makes one or two panels' columns of the output. A whole tile of rows of
`x` lies in VMEM and stays there while the panels pass by; block indices are prefetched to SMEM and
slice it, so a panel is read once, in one piece, and nothing is gathered. Where so many columns do
not fit, the blocks of `x` are fetched by their indices instead, several to a step. Sums are
float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_ROWS = 512
# Of a tile of whole rows, which is held twice while the next one is on its way.
_TILE_BYTES = 12 * 2**20
# Below the VMEM of every chip that has Mosaic's large one (v5p's scoped limit is the least).
_VMEM_BYTES = 60 * 2**20
# Of two panels, held twice.
_PAIR_BYTES = 4 * 2**20
# Blocks of x fetched in one step, each an operand of the kernel.
_SLOTS = 8


def forward(x: jax.Array, data: jax.Array, kidx: jax.Array, *, interpret: bool = False
            ) -> jax.Array:
  """`[M, nk * bk]` times panels `[G, S * bk, bn]`: `[M, G * bn]` of x's dtype."""
  rows, features = x.shape
  whole = next((n for n in (_ROWS, 256, 128, 64)
                if min(n, rows) * features * x.dtype.itemsize <= _TILE_BYTES), None)
  if whole is None:
    return _by_block(x, data, kidx, interpret)
  panels, depth, bn = data.shape
  slots, bm = kidx.shape[1], _tile(rows, whole)
  bk = depth // slots
  # Two by two where they fit: filling and draining the MXU is a step's own cost.
  pair = 2 if panels % 2 == 0 and 2 * depth * bn * x.dtype.itemsize <= _PAIR_BYTES else 1
  index, at = _index(kidx, features // bk)
  size = x.dtype.itemsize
  tiles = pl.cdiv(rows, bm)

  def kernel(where, x_ref, w_ref, out_ref):
    for p in range(pair):
      g = pl.program_id(1) * pair + p

      def add(t, total, p=p, g=g):
        there = pl.ds(pl.multiple_of(at(where, g, t) * bk, bk), bk)
        here = pl.ds(pl.multiple_of(t * bk, bk), bk)
        return total + _dot(x_ref[:, there], w_ref[p, here, :])

      total = jax.lax.fori_loop(0, slots, add, jnp.zeros((bm, bn), jnp.float32),
                                unroll=slots <= 32)
      out_ref[:, p * bn:(p + 1) * bn] = total.astype(out_ref.dtype)

  grid = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(tiles, panels // pair),
      in_specs=[pl.BlockSpec((bm, features), lambda i, g, _: (i, 0)),
                pl.BlockSpec((pair, depth, bn), lambda i, g, _: (g, 0, 0))],
      out_specs=pl.BlockSpec((bm, pair * bn), lambda i, g, _: (i, g)))
  moved = rows * features + tiles * data.size + rows * panels * bn
  return _call(kernel, grid, (rows, panels * bn), x.dtype, 2 * rows * data.size, moved * size,
               ('parallel', 'arbitrary'), 'panels', interpret)(index, x, data)


def _by_block(x, data, kidx, interpret):
  rows = x.shape[0]
  (panels, depth, bn), slots = data.shape, kidx.shape[1]
  bk, together, bm = depth // slots, _together(slots), _tile(rows, _ROWS)
  tiles, steps = pl.cdiv(rows, bm), slots // together
  index, at = _index(kidx, x.shape[1] // bk)

  def add(j, x_ref, w_ref, total):
    total[...] += _dot(x_ref[...], w_ref[0, j * bk:(j + 1) * bk, :])

  block = lambda i, g, t, where, j: (i, at(where, g, t * together + j))
  fetch = [pl.BlockSpec((bm, bk), functools.partial(block, j=j)) for j in range(together)]
  grid = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(tiles, panels, steps),
      in_specs=[*fetch, pl.BlockSpec((1, together * bk, bn), lambda i, g, t, _: (g, t, 0))],
      out_specs=pl.BlockSpec((bm, bn), lambda i, g, t, _: (i, g)),
      scratch_shapes=[pltpu.VMEM((bm, bn), jnp.float32)])
  moved = rows * panels * depth + tiles * data.size + rows * panels * bn
  run = _call(_summed(steps, add), grid, (rows, panels * bn), x.dtype, 2 * rows * data.size,
              moved * x.dtype.itemsize, ('parallel', 'arbitrary', 'arbitrary'), 'panels_by_block',
              interpret)
  return run(index, *[x] * together, data)


def weight_gradient(x: jax.Array, dy: jax.Array, kidx: jax.Array, bk: int, *,
                    interpret: bool = False) -> jax.Array:
  """The products `x_k^T dy_g` of the blocks that are kept alone: `[G, S * bk, bn]`."""
  panels, slots = kidx.shape
  bn, together = dy.shape[1] // panels, _together(slots)
  bm = _tile(x.shape[0], 2 * _ROWS)
  # Rows are summed over: those that fill the last tile have to be zero.
  x, dy = (jnp.pad(a, ((0, -a.shape[0] % bm), (0, 0))) for a in (x, dy))
  steps = x.shape[0] // bm
  index, at = _index(kidx, x.shape[1] // bk)

  def add(j, x_ref, dy_ref, total):
    total[j * bk:(j + 1) * bk, :] += _dot(x_ref[...], dy_ref[...], 0)

  block = lambda g, t, m, where, j: (m, at(where, g, t * together + j))
  fetch = [pl.BlockSpec((bm, bk), functools.partial(block, j=j)) for j in range(together)]
  grid = pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(panels, slots // together, steps),
      in_specs=[*fetch, pl.BlockSpec((bm, bn), lambda g, t, m, _: (m, g))],
      out_specs=pl.BlockSpec((None, together * bk, bn), lambda g, t, m, _: (g, t, 0)),
      scratch_shapes=[pltpu.VMEM((together * bk, bn), jnp.float32)])
  made = panels * slots * bk * bn
  moved = x.shape[0] * panels * (slots * bk + slots // together * bn) + made
  run = _call(_summed(steps, add), grid, (panels, slots * bk, bn), x.dtype,
              2 * x.shape[0] * made, moved * x.dtype.itemsize,
              ('parallel', 'parallel', 'arbitrary'), 'panels_gradient', interpret)
  return run(index, *[x] * together, dy)


def _summed(steps: int, add):
  """The kernel that sums over the last axis of the grid: `add(j, x_ref, other_ref, total)`."""
  def kernel(_, *refs):
    *x_refs, other_ref, out_ref, total = refs
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
      total[...] = jnp.zeros_like(total)

    for j, x_ref in enumerate(x_refs):
      add(j, x_ref, other_ref, total)

    @pl.when(step == steps - 1)
    def _():
      out_ref[...] = total[...].astype(out_ref.dtype)

  return kernel


def _call(kernel, grid, shape, dtype, flops, moved, semantics, name, interpret):
  return pl.pallas_call(
      kernel, grid_spec=grid, out_shape=jax.ShapeDtypeStruct(shape, dtype), interpret=interpret,
      name=name, cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0,
                                               bytes_accessed=moved),
      compiler_params=pltpu.CompilerParams(dimension_semantics=semantics,
                                           vmem_limit_bytes=_VMEM_BYTES))


def _dot(a, b, contracted: int = 1):
  return jax.lax.dot_general(a, b, (((contracted,), (0,)), ((), ())),
                             preferred_element_type=jnp.float32)


class _Index(NamedTuple):
  """How a kernel reads block indices from SMEM."""

  flipped: bool   # whether they come as [S, G]
  last: int       # block row

  def __call__(self, index, g, t):
    return jnp.clip(index[t, g] if self.flipped else index[g, t], 0, self.last)


def _index(kidx, blocks):
  """Block indices as XLA lays out so small an array by itself, the longer axis last: no copy."""
  flipped = kidx.shape[1] < kidx.shape[0]
  return (kidx.T if flipped else kidx), _Index(flipped, blocks - 1)


def _tile(rows: int, most: int) -> int:
  """Rows of a tile: all of them where they are few, in whole registers of any dtype."""
  return min(most, -(-rows // 32) * 32)


def _together(slots: int) -> int:
  return max(n for n in range(1, _SLOTS + 1) if slots % n == 0)
