"""Block-sparse weights as panels: every output panel holds the same number of row blocks.

The layout of `kernels.block_sparse_matmul`: the number of blocks in a panel is static and which
they are is data, so a new mask recompiles nothing. Unbalanced masks are padded to their fullest
panel, and empty panels left out; `balanced_blocks` masks need neither.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats import bitmask
from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.kernels import block_sparse_matmul as kernel
from jaxsparse.numerics import axes


@functools.partial(jax.tree_util.register_dataclass, data_fields=['data', 'kidx', 'columns'],
                   meta_fields=['layout', 'block', 'doubly_balanced'])
@dataclasses.dataclass(frozen=True)
class BlockArray(formats.SparseFormat):
  """`data[g, s * bk:(s + 1) * bk]` is the block of panel g in block row `kidx[g, s]`.

  Attributes:
    data: `[*batch, G, S * bk, bn]`, an array or packed integer codes.
    kidx: int32 `[*batch, G, S]`: block rows, ascending; padding repeats row 0 with zero data.
    columns: int32 `[*batch, G]`: the block column each panel produces, one past the last for a
      panel of padding; None where panel g produces column g, and all are there.
    layout: of the dense weight.
    block: `(bk, bn)`, rows and columns of a block; ragged edges are stored padded.
    doubly_balanced: whether every block row is kept equally often, too.
  """

  data: Any
  kidx: jax.Array
  columns: jax.Array | None
  layout: axes.Layout
  block: tuple[int, int]
  doubly_balanced: bool = False

  @classmethod
  def from_mask(cls, matrix, mask, layout, block) -> 'BlockArray':
    """Stores the blocks of `matrix` `[*batch, R, O]` in which `mask` has a True.

    Raises:
      TracedMaskError: a ValueError; `mask` is traced.
    """
    if isinstance(mask, jax.core.Tracer):
      raise bitmask.TracedMaskError
    alive = np.asarray(alive_blocks(np.asarray(mask), block))   # [*batch, nk, nn]
    by_column = np.moveaxis(alive, -1, -2)
    panels = int(by_column.any(-1).sum(-1).max(initial=0))
    depth = int(by_column.sum(-1).max(initial=0))
    columns = np.argsort(~by_column.any(-1), axis=-1, kind='stable')[..., :panels]
    used = np.take_along_axis(by_column, columns[..., None], axis=-2)  # [*batch, G, nk]
    rows = np.argsort(~used, axis=-1, kind='stable')[..., :depth]
    real = np.take_along_axis(used, rows, axis=-1)
    kidx = np.where(real, rows, 0).astype(np.int32)
    data = jnp.where(mask, matrix, 0)
    everywhere = bool(used.any(-1).all()) and panels == by_column.shape[-2]
    data = gathered(data, kidx, None if everywhere else columns, block)
    data = jnp.where(np.repeat(real, block[0], axis=-1)[..., None], data, 0)
    counts = alive.sum(-1)
    even = everywhere and bool(real.all()) and bool((counts == counts.max(initial=0)).all())
    if not everywhere:
      columns = jnp.asarray(np.where(used.any(-1), columns, alive.shape[-1]).astype(np.int32))
    return cls(data, jnp.asarray(kidx), None if everywhere else columns, layout,
               tuple(block), even)

  def _grid(self) -> tuple[int, int]:
    return grid_of(self.layout.matrix_shape, self.block)

  def dense_matrix(self):
    if len(self.layout.matrix_shape) > 2:
      return jax.vmap(lambda f: f.drop_leading().dense_matrix())(_batch_first(self))
    (bk, bn), (nk, nn) = self.block, self._grid()
    data = packed.unpacked(self.data)
    panels, slots = self.kidx.shape
    data = data.reshape(panels, slots, bk, bn)
    dense = jnp.zeros((nk, nn, bk, bn), data.dtype)
    columns = jnp.arange(nn) if self.columns is None else self.columns
    # Padding adds zeros; a padded panel lies outside and is dropped.
    dense = dense.at[self.kidx, columns[:, None]].add(data, mode='drop')
    dense = dense.transpose(0, 2, 1, 3).reshape(nk * bk, nn * bn)
    r, o = self.layout.matrix_shape[-2:]
    return dense[:r, :o].astype(self.dtype)

  def matmul(self, x):
    if len(self.layout.matrix_shape) > 2:
      return jax.vmap(lambda f, y: f.drop_leading().matmul(y))(_batch_first(self), x)
    if not self._pays():
      return x @ self.dense_matrix()
    r, o = self.layout.matrix_shape[-2:]
    data = packed.unpacked(self.data).astype(jnp.result_type(x, self.dtype))
    out = kernel.block_sparse_matmul(x, data, self.kidx, doubly_balanced=self.doubly_balanced)
    if self.columns is not None:
      (_, bn), (_, nn) = self.block, self._grid()
      full = jnp.zeros((x.shape[0], nn, bn), out.dtype)
      panels = out.reshape(x.shape[0], self.columns.shape[0], bn)
      out = full.at[:, self.columns].set(panels, mode='drop').reshape(x.shape[0], nn * bn)
    return out[:, :o]

  def _pays(self) -> bool:
    """Whether the panels are cheaper than the dense product, as measured on CPUs."""
    stored = int(np.prod(self._stored_shape(), dtype=int))
    most = 0.5 if min(self.block) >= 32 or 1 in self._grid() else 0.25
    return stored <= most * self.size

  def multiply_adds(self, rows):
    stored, dense = int(np.prod(self._stored_shape(), dtype=int)), rows * self.size
    return formats.Cost(rows * stored if self._pays() else dense, min(rows * stored, dense))

  def _stored_shape(self):
    if isinstance(self.data, packed.PackedInts):
      return (*self.data.data.shape[:-2], self.data.rows, self.data.data.shape[-1])
    return self.data.shape

  def map_values(self, f):
    dense = f(self.dense_matrix())
    columns = None if self.columns is None else jnp.minimum(self.columns, self._grid()[1] - 1)
    data = gathered(dense, self.kidx, columns, self.block)
    slot = jax.lax.broadcasted_iota(jnp.int32, self.kidx.shape, self.kidx.ndim - 1)
    # Rows ascend, so a row block 0 after the first slot is padding.
    real = jnp.repeat((self.kidx > 0) | (slot == 0), self.block[0], axis=-1)
    return dataclasses.replace(self, data=jnp.where(real[..., None], data, 0),
                               layout=self.layout.astype(data.dtype))

  def with_bits(self, bits):
    return dataclasses.replace(self, data=packed.PackedInts.pack(self.data, bits, signed=True))

def grid_of(matrix_shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
  """How many blocks a matrix `[*batch, R, O]` has along rows and columns, ragged ones included."""
  return tuple(-(-n // b) for n, b in zip(matrix_shape[-2:], block))


def blocks_of(matrix, block: tuple[int, int]):
  """`[*batch, R, O]` as `[*batch, nk, bk, nn, bn]`, padded with zeros."""
  r, o = matrix.shape[-2:]
  (bk, bn), (nk, nn) = block, grid_of(matrix.shape, block)
  if (nk * bk, nn * bn) != (r, o):
    pad = np.pad if isinstance(matrix, np.ndarray) else jnp.pad
    matrix = pad(matrix, [(0, 0)] * (matrix.ndim - 2) + [(0, nk * bk - r), (0, nn * bn - o)])
  return matrix.reshape(*matrix.shape[:-2], nk, bk, nn, bn)


def alive_blocks(mask, block: tuple[int, int]):
  """Which blocks of a mask `[*batch, R, O]` keep anything, bool `[*batch, nk, nn]`."""
  return blocks_of(mask, block).any((-3, -1))


def gathered(matrix, kidx, columns, block: tuple[int, int]) -> jax.Array:
  """The panels `[*batch, G, S * bk, bn]` of the blocks that `kidx` and `columns` name."""
  split = jnp.moveaxis(blocks_of(matrix, block), -2, -4)   # [*batch, nn, nk, bk, bn]
  if columns is not None:
    split = jnp.take_along_axis(split, columns[..., None, None, None], axis=-4)
  data = jnp.take_along_axis(split, kidx[..., None, None], axis=-3)
  return data.reshape(*kidx.shape[:-1], kidx.shape[-1] * block[0], block[1])


def _batch_first(x: BlockArray) -> BlockArray:
  """`x` with a layout in batch, reduction, output order, so that axis 0 can be dropped."""
  shape = x.layout.matrix_shape
  return dataclasses.replace(
      x, layout=axes.Layout(shape, x.dtype, axes.default_axes(len(shape))))
