"""Grouped products as Pallas kernels for TPUs.

The grid walks over *visits*: a pair of a tile of rows and a group that has rows in it, in order of
rows. There are at most `ceil(M / tm) + G` of them, so the grid is static, and which tile and group
a visit is comes in as scalars that are fetched ahead. A tile that two groups share is visited twice
in a row while it stays in VMEM, each time keeping the rows of one group.

Work is that of the rows plus at most a tile of rows a group, where `lax.ragged_dot` on a TPU
multiplies every row by every group's matrix.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_MOST_ROWS = 512
_MOST_SIDE = 512        # of a tile of the result, and of a weight's block
_MOST_SUMMED = 1024     # of the contracted axis at a time
_VMEM_BYTES = 48 * 2**20


class Visits(NamedTuple):
  """Which tile of rows and which group each step of the grid is about; a pytree of int32.

  Attributes:
    tile: `[T]`, ascending.
    group: `[T]`, ascending.
    low: `[T]`, first row of the visit, counted from the start.
    high: `[T]`, the row after its last; `low` where there is nothing to do.
  """

  tile: jax.Array
  group: jax.Array
  low: jax.Array
  high: jax.Array


def visits(ends: jax.Array, tiles: int, rows: int, *, every_group: bool) -> Visits:
  """The visits of a grid of `tiles + G` steps.

  Args:
    ends: int32 `[G]`, the row after each group's last.
    tiles: how many tiles of `rows` rows there are.
    rows: of a tile.
    every_group: also visits groups without rows, so that their gradients are written; otherwise
      every tile is visited, those after the last group too.

  Returns:
    The visits; steps that are left over repeat the last one with nothing to do.
  """
  groups = ends.shape[0]
  starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]])
  first = jnp.minimum(starts // rows, tiles - 1)
  count = jnp.where(ends > starts, (ends - 1) // rows - starts // rows + 1, int(every_group))
  after = jnp.cumsum(count)
  step = jnp.arange(tiles + groups, dtype=jnp.int32)
  group = jnp.searchsorted(after, step, side='right').astype(jnp.int32)
  here = jnp.minimum(group, groups - 1)
  tile = first[here] + step - (after - count)[here]
  used = (ends[-1] + rows - 1) // rows
  beyond = used + step - after[-1] if not every_group else jnp.full_like(step, tiles - 1)
  tile = jnp.where(group < groups, tile, jnp.minimum(beyond, tiles - 1))
  low = jnp.maximum(starts[here], tile * rows)
  high = jnp.minimum(ends[here], (tile + 1) * rows)
  high = jnp.where(group < groups, jnp.maximum(high, low), low)
  return Visits(tile, here, low, high)


def forward(x: jax.Array, w: jax.Array, ends: jax.Array, *, transposed: bool = False,
            interpret: bool = False) -> jax.Array:
  """Every row times its group's matrix; rows after the last group are zero.

  Args:
    x: `[M, K]`.
    w: `[G, K, N]`, or `[G, N, K]` where `transposed`.
    ends: int32 `[G]`, the row after each group's last.
    transposed: contracts the last axis of `w`.
    interpret: runs without the hardware.

  Returns:
    `[M, N]` of the dtype of `x`.
  """
  m, n = x.shape[0], w.shape[1 if transposed else 2]
  tm, x = _tiled_rows(x, len(ends))
  tk, x = _tiled(x, 1, _MOST_SUMMED)
  _, w = _tiled(w, 2 if transposed else 1, _MOST_SUMMED)
  tn, w = _tiled(w, 1 if transposed else 2, _MOST_SIDE)
  wide = w.shape[1 if transposed else 2]
  plan = visits(ends, x.shape[0] // tm, tm, every_group=False)
  steps = x.shape[1] // tk
  at_w = ((lambda j, v, k, s: (s.group[v], j, k)) if transposed
          else (lambda j, v, k, s: (s.group[v], k, j)))
  numbers = (((1,), (1 if transposed else 0,)), ((), ()))
  out = pl.pallas_call(
      functools.partial(_forward_kernel, tm=tm, steps=steps, numbers=numbers),
      out_shape=jax.ShapeDtypeStruct((x.shape[0], wide), x.dtype),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=4,
          grid=(wide // tn, plan.tile.shape[0], steps),
          in_specs=[_block((tm, tk), lambda j, v, k, s: (s.tile[v], k)),
                    _block((1, tn, tk) if transposed else (1, tk, tn), at_w)],
          out_specs=_block((tm, tn), lambda j, v, k, s: (s.tile[v], j)),
          scratch_shapes=[pltpu.VMEM((tm, tn), jnp.float32)]),
      compiler_params=_params(1),
      cost_estimate=_cost(m, x.shape[1], wide, x.nbytes * (wide // tn), w.nbytes,
                          x.shape[0] * wide * x.dtype.itemsize),
      interpret=interpret, name='grouped_matmul')(*plan, x, w)
  return out[:m, :n]


def _forward_kernel(tile, group, low, high, x, w, out, total, *, tm, steps, numbers):
  del group
  visit, k = pl.program_id(1), pl.program_id(2)

  @pl.when((k == 0) & ((visit == 0) | (tile[jnp.maximum(visit - 1, 0)] != tile[visit])))
  def _():
    out[...] = jnp.zeros_like(out)

  @pl.when(low[visit] < high[visit])
  def _():
    part = jax.lax.dot_general(x[...], w[0], numbers, preferred_element_type=jnp.float32,
                               precision=_precision(x.dtype))
    total[...] = jnp.where(k == 0, 0.0, total[...]) + part

    @pl.when(k == steps - 1)
    def _():
      own = _own(out.shape, tile[visit] * tm, low[visit], high[visit])
      out[...] = jnp.where(own, total[...], out[...].astype(jnp.float32)).astype(out.dtype)


def weight_gradient(x: jax.Array, dy: jax.Array, ends: jax.Array, *,
                    interpret: bool = False) -> jax.Array:
  """`x.T @ dy` over each group's rows.

  Args:
    x: `[M, K]`.
    dy: `[M, N]`.
    ends: int32 `[G]`, the row after each group's last.
    interpret: runs without the hardware.

  Returns:
    float32 `[G, K, N]`.
  """
  groups, k, n = len(ends), x.shape[1], dy.shape[1]
  tm, x = _tiled_rows(x, groups)
  _, dy = _tiled_rows(dy, groups)
  tk, x = _tiled(x, 1, _MOST_SIDE)
  tn, dy = _tiled(dy, 1, _MOST_SIDE)
  plan = visits(ends, x.shape[0] // tm, tm, every_group=True)
  tall, wide = x.shape[1], dy.shape[1]
  out = pl.pallas_call(
      functools.partial(_gradient_kernel, tm=tm),
      out_shape=jax.ShapeDtypeStruct((groups, tall, wide), jnp.float32),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=4,
          grid=(tall // tk, wide // tn, plan.tile.shape[0]),
          in_specs=[_block((tm, tk), lambda i, j, v, s: (s.tile[v], i)),
                    _block((tm, tn), lambda i, j, v, s: (s.tile[v], j))],
          out_specs=_block((1, tk, tn), lambda i, j, v, s: (s.group[v], i, j))),
      compiler_params=_params(2),
      cost_estimate=_cost(x.shape[0], tall, wide, x.nbytes * (wide // tn),
                          dy.nbytes * (tall // tk), groups * tall * wide * 4),
      interpret=interpret, name='grouped_weight_gradient')(*plan, x, dy)
  return out[:, :k, :n]


def _gradient_kernel(tile, group, low, high, x, dy, out, *, tm):
  visit = pl.program_id(2)

  @pl.when((visit == 0) | (group[jnp.maximum(visit - 1, 0)] != group[visit]))
  def _():
    out[...] = jnp.zeros_like(out)

  @pl.when(low[visit] < high[visit])
  def _():
    # Both, since another group's NaN times zero is NaN.
    left, right = (jnp.where(_own(v.shape, tile[visit] * tm, low[visit], high[visit]), v[...], 0)
                   for v in (x, dy))
    out[0] += jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())),
                                  preferred_element_type=jnp.float32,
                                  precision=_precision(x.dtype))


def _block(shape, index):
  return pl.BlockSpec(shape, lambda *at: index(*at[:-4], Visits(*at[-4:])))


def _own(shape, start, low, high):
  row = start + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  return (row >= low) & (row < high)


def _precision(dtype):
  # The default of a TPU rounds float32 operands to bfloat16.
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def _tiled_rows(x, groups):
  """The rows of a tile, near a group's mean, and `x` padded to a multiple of them."""
  mean = -(-x.shape[0] // groups)
  return _tiled(x, 0, min(_MOST_ROWS, max(_LANES, 1 << (mean - 1).bit_length())))


def _tiled(x, axis, most):
  """A tile of at most `most` along an axis, and `x` padded with zeros to a multiple of it."""
  lanes = -(-x.shape[axis] // _LANES)
  # The largest that pads nothing beyond whole lanes.
  tile = _LANES * max(n for n in range(1, most // _LANES + 1) if lanes % n == 0)
  edges = [(0, 0)] * x.ndim
  edges[axis] = (0, -x.shape[axis] % tile)
  return tile, jnp.pad(x, edges)


def _params(outer):
  return pltpu.CompilerParams(
      dimension_semantics=('parallel',) * outer + ('arbitrary',) * (3 - outer),
      vmem_limit_bytes=_VMEM_BYTES)


def _cost(m, k, n, *transfers):
  """What the rows need; tiles at the borders of groups add at most a tile a group."""
  return pl.CostEstimate(flops=2 * m * k * n, bytes_accessed=sum(transfers), transcendentals=0)
