"""Products with panels on GPUs, in Pallas for Triton.

A program of the grid makes `[bm, bn]` of the output, or of a block's gradient, in registers: it
walks over the blocks of its panel, or over the rows, and loads what the index says. Sums are
float32. Lowered and exported without a GPU; never run on one.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

# Rows of a tile, and the most rows or columns of a block multiplied at once: registers are few.
_ROWS, _SIDE = 64, 64


def forward(x: jax.Array, data: jax.Array, kidx: jax.Array, *, interpret: bool = False
            ) -> jax.Array:
  """`[M, nk * bk]` times panels `[G, S * bk, bn]`: `[M, G * bn]` of x's dtype."""
  (panels, depth, bn), slots, rows = data.shape, kidx.shape[1], x.shape[0]
  bk = depth // slots
  deep, wide, last = min(bk, _SIDE), min(bn, _SIDE), x.shape[1] // bk - 1
  x, padded = _whole(x)

  def kernel(x_ref, w_ref, index_ref, out_ref):
    i, j = pl.program_id(0), pl.program_id(1)
    panel, column = _divided(j, bn // wide)

    def add(t, total):
      slot, part = _divided(t, bk // deep)
      block = jnp.clip(index_ref[panel, slot], 0, last)
      left = x_ref[pl.ds(i * _ROWS, _ROWS), pl.ds(block * bk + part * deep, deep)]
      right = w_ref[panel, pl.ds(t * deep, deep), pl.ds(column * wide, wide)]
      return total + pltriton.dot(left, right).astype(jnp.float32)

    total = jax.lax.fori_loop(0, depth // deep, add, jnp.zeros((_ROWS, wide), jnp.float32))
    out_ref[...] = total.astype(out_ref.dtype)

  moved = padded * panels * depth + padded // _ROWS * data.size + padded * panels * bn
  out = _call(kernel, (padded // _ROWS, panels * (bn // wide)), 3,
              pl.BlockSpec((_ROWS, wide), lambda i, j: (i, j)), (padded, panels * bn), x.dtype,
              2 * padded * data.size, moved * x.dtype.itemsize, 'panels', interpret
              )(x, data, kidx)
  return out[:rows]


def weight_gradient(x: jax.Array, dy: jax.Array, kidx: jax.Array, bk: int, *,
                    interpret: bool = False) -> jax.Array:
  """The products `x_k^T dy_g` of the blocks that are kept alone: `[G, S * bk, bn]`."""
  panels, slots = kidx.shape
  bn = dy.shape[1] // panels
  deep, wide, last = min(bk, _SIDE), min(bn, _SIDE), x.shape[1] // bk - 1
  (x, padded), (dy, _) = _whole(x), _whole(dy)

  def kernel(x_ref, dy_ref, index_ref, out_ref):
    panel, i, j = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    slot, part = _divided(i, bk // deep)
    start = jnp.clip(index_ref[panel, slot], 0, last) * bk + part * deep

    def add(m, total):
      rows = pl.ds(m * _ROWS, _ROWS)
      left = x_ref[rows, pl.ds(start, deep)]
      right = dy_ref[rows, pl.ds(panel * bn + j * wide, wide)]
      return total + pltriton.dot(left, right, trans_a=True).astype(jnp.float32)

    total = jax.lax.fori_loop(0, padded // _ROWS, add, jnp.zeros((deep, wide), jnp.float32))
    out_ref[0] = total.astype(out_ref.dtype)

  made = panels * slots * bk * bn
  moved = padded * panels * slots * bk * (bn // wide) + padded * panels * bn * slots * (bk // deep)
  return _call(kernel, (panels, slots * (bk // deep), bn // wide), 3,
               pl.BlockSpec((1, deep, wide), lambda g, i, j: (g, i, j)),
               (panels, slots * bk, bn), x.dtype, 2 * padded * made,
               (moved + made) * x.dtype.itemsize, 'panels_gradient', interpret)(x, dy, kidx)


def _divided(number, by: int):
  """Quotient and remainder of a number that is not negative, as Triton has them."""
  by = jnp.asarray(by, number.dtype)
  return jax.lax.div(number, by), jax.lax.rem(number, by)


def _whole(x):
  """Rows filled up with zeros to whole tiles, and their number."""
  padded = -(-x.shape[0] // _ROWS) * _ROWS
  return jnp.pad(x, ((0, padded - x.shape[0]), (0, 0))), padded


def _call(kernel, grid, inputs, out_spec, shape, dtype, flops, moved, name, interpret):
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  return pl.pallas_call(
      kernel, grid=grid, in_specs=[anywhere] * inputs, out_specs=out_spec,
      out_shape=jax.ShapeDtypeStruct(shape, dtype), interpret=interpret, name=name,
      cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved),
      compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=3))
