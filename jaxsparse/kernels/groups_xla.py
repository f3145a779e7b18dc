"""Grouped products in plain XLA: a loop over groups, and over tiles of each group's rows.

A tile's product has static shapes; how many tiles a group takes is a run-time number, so work
follows the rows that are there, and another routing is the same program. XLA:CPU copies what it
slices out of `w`, so a group's matrix is sliced once and its rows are covered by few products: by
the smallest tile that holds what is left, and by whole big ones before.
"""

import functools

import jax
import jax.numpy as jnp

from jaxsparse.kernels import manual_axes
from jaxsparse.kernels import sums

# XLA:CPU multiplies 64 rows and more at about its full rate; of fewer, a row costs up to three
# times as much, so only the smallest remainders get tiles of their own.
_ROWS = (512, 256, 224, 192, 160, 128, 96, 64, 16, 4)
# Rows are summed over in the weight gradient, where any number runs at the full rate but every tile
# adds a whole matrix to memory: what is left beside big tiles comes first, and adds to nothing.
_SUMMED = (1024, 256)
_STEP = 32
# Tiles of at least so many rows are taken only when full.
_FULL = 256


def forward(x: jax.Array, w: jax.Array, ends: jax.Array, *, transposed: bool = False) -> jax.Array:
  """Every row times its group's matrix; rows after the last group are zero.

  Args:
    x: `[M, K]`.
    w: `[G, K, N]`, or `[G, N, K]` where `transposed`.
    ends: int32 `[G]`, the row after each group's last.
    transposed: contracts the last axis of `w`.

  Returns:
    `[M, N]` of the dtype of `x`.
  """
  outputs = w.shape[1 if transposed else 2]
  numbers = (((1,), (1 if transposed else 0,)), ((), ()))

  def group(g, out):
    matrix = jax.lax.dynamic_index_in_dim(w, g, keepdims=False)
    start, end = _range(ends, g)

    def tile(at, size, out):
      place = jnp.minimum(at, len(out) - size)
      y = jax.lax.dot_general(_rows(x, place, size), matrix, numbers,
                              preferred_element_type=sums.wide(x.dtype)).astype(out.dtype)
      y = jnp.where(_own(place, size, at, end), y, _rows(out, place, size))
      return jax.lax.dynamic_update_slice_in_dim(out, y, place, axis=0)

    return _tiles(_fitting(_ROWS, len(x)), _FULL, start, end, tile, out)

  rows = x.shape[0]
  x = _padded(x, _ROWS)
  out, _ = manual_axes.alike(jnp.zeros((x.shape[0], outputs), x.dtype), x)
  return jax.lax.fori_loop(0, w.shape[0], group, out)[:rows]


def weight_gradient(x: jax.Array, dy: jax.Array, ends: jax.Array) -> jax.Array:
  """`x.T @ dy` over each group's rows.

  Args:
    x: `[M, K]`.
    dy: `[M, N]`.
    ends: int32 `[G]`, the row after each group's last.

  Returns:
    `[G, K, N]` of the dtype sums are kept in: float32, or wider.
  """
  x, dy, big = _padded(x, _SUMMED), _padded(dy, _SUMMED), _SUMMED[-1]
  dtype, rows = sums.wide(x.dtype), len(x)
  nothing = manual_axes.alike(jnp.zeros((x.shape[1], dy.shape[1]), dtype), x)[0]

  def group(g):
    start, end = _range(ends, g)

    def tile(at, size):
      place = jnp.minimum(at, rows - size)
      own = _own(place, size, at, end)
      # Both, since another group's NaN times zero is NaN.
      left, right = (jnp.where(own, _rows(v, place, size), 0) for v in (x, dy))
      return jax.lax.dot_general(left, right, (((0,), (0,)), ((), ())),
                                 preferred_element_type=dtype)

    add = lambda at, size, out: out + tile(at, size)
    whole = end - (end - start) % big
    rest = [functools.partial(tile, whole, n) for n in range(_STEP, big + 1, _STEP)]
    out = jax.lax.switch(-((whole - end) // _STEP), [lambda: nothing, *rest])
    return _tiles(_fitting(_SUMMED, rows), 0, start, whole, add, out)

  return jax.lax.map(group, jnp.arange(len(ends)))


def _tiles(sizes, full, start, end, tile, out):
  """Covers rows start to end by tiles of `sizes`, descending."""
  at = start
  for i, size in enumerate(sizes):
    smaller = sizes[i + 1] if i + 1 < len(sizes) else 0
    needed = size - 1 if smaller and size >= full else smaller
    at, out = jax.lax.while_loop(
        lambda c, needed=needed: c[0] + needed < end,
        lambda c, size=size: (c[0] + size, tile(c[0], size, c[1])), (at, out))
  return out


def _fitting(sizes, rows):
  # Less than all rows: XLA moves a product that slices nothing out of its loop, and does it always.
  return [size for size in sizes if size < rows]


def _padded(x, sizes):
  """`x` with more rows than the smallest tile."""
  return jnp.pad(x, ((0, max(0, sizes[-1] + 1 - x.shape[0])), (0, 0)))


def _range(ends, g):
  end = ends[g]
  return jnp.where(g > 0, ends[jnp.maximum(g - 1, 0)], 0), end


def _rows(x, place, size):
  return jax.lax.dynamic_slice_in_dim(x, place, size)


def _own(place, size, at, end):
  row = place + jnp.arange(size)[:, None]
  return (row >= at) & (row < end)
