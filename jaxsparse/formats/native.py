"""Weights laid out for the native CPU kernels: the same layouts on every machine; see `prepare`."""

import dataclasses
import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats import bitmask
from jaxsparse.formats import block
from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.formats import quantized
from jaxsparse.kernels.native import activations
from jaxsparse.kernels.native import columns
from jaxsparse.kernels.native import nibbles
from jaxsparse.kernels.native import tiles
from jaxsparse.kernels.native import vectors
from jaxsparse.numerics import axes

# Densities up to which a kernel is faster than XLA's dense product; for compressed columns, at 32
# rows or more, and faster than expanding the weight at each call at fewer.
_COLUMNS_BELOW, _VECTORS_BELOW, _TILES_BELOW = 0.38, 0.8, 0.8


class _Kernel(NamedTuple):
  matmul: Callable
  dense: Callable
  stored: str   # the operand whose entries are multiplied


_KERNELS = {
    'vectors': _Kernel(vectors.vector_sparse_matmul, vectors.dense, 'values'),
    'columns': _Kernel(columns.csr_matmul, columns.dense, 'values'),
    'int8': _Kernel(tiles.int8_matmul, tiles.dense, 'tiles'),
    'int8_tiles': _Kernel(tiles.int8_tile_matmul, tiles.dense_sparse, 'tiles'),
    'int4': _Kernel(nibbles.int4_matmul, nibbles.dense, 'packed'),
}


@functools.partial(jax.tree_util.register_dataclass, data_fields=['operands', 'input_scale'],
                   meta_fields=['layout', 'kernel', 'group'])
@dataclasses.dataclass(frozen=True)
class NativeArray(formats.Format):
  """The operands of one kernel, each with the weight's batch axes in front.

  Attributes:
    operands: arrays by name, as the kernel's `pack` made them.
    layout: of the dense weight.
    kernel: `vectors`, `columns`, `int8`, `int8_tiles` or `int4`.
    group: rows that share a scale, of `int4`.
    input_scale: float32 `[*batch, R, 1]` that inputs are divided by, or None.
  """

  operands: dict[str, Any]
  layout: axes.Layout
  kernel: str
  group: int | None = None
  input_scale: jax.Array | None = None

  @classmethod
  def of_vectors(cls, matrix, layout, length: int = 64) -> 'NativeArray':
    """The rows' runs of `length` outputs, 16, 32 or 64, of `[*batch, R, O]` that are not zero."""
    return cls(_stacked(lambda m: vectors.pack(m, length), _concrete(matrix)), layout, 'vectors')

  @classmethod
  def of_columns(cls, matrix, layout) -> 'NativeArray':
    """The entries of `[*batch, R, O]` that are not zero, by output (CSR of the transpose)."""
    return cls(_stacked(columns.pack, _concrete(matrix)), layout, 'columns')

  @classmethod
  def of_int8(cls, codes, scale, layout, input_scale=None) -> 'NativeArray':
    """Codes `[*batch, R, O]` in eight bits with a scale for each output, `[*batch, 1, O]`."""
    both = _stacked(lambda m, s: tiles.pack(m, s[0]), codes, _over(scale, codes))
    return cls(both, layout, 'int8', None, input_scale)

  @classmethod
  def of_int8_tiles(cls, codes, scale, layout, input_scale=None) -> 'NativeArray':
    """The tiles of 4 rows by 16 outputs of such codes that are not all zero."""
    both = _stacked(lambda m, s: tiles.pack_sparse(m, s[0]), _concrete(codes),
                    _over(scale, codes))
    return cls(both, layout, 'int8_tiles', None, input_scale)

  @classmethod
  def of_int4(cls, codes, scale, layout, group=None, input_scale=None) -> 'NativeArray':
    """Codes in -8..7 with a scale for `group` rows and an output, `[*batch, G, O]`."""
    rows = codes.shape[-2]
    group = group or max(nibbles.ROWS, -(-rows // nibbles.ROWS) * nibbles.ROWS)
    both = _stacked(nibbles.pack, codes, _over(scale, codes))
    return cls(both, layout, 'int4', group, input_scale)

  def _static(self):
    return {} if self.group is None else {'group': self.group}

  def dense_matrix(self):
    depth, outputs = self.layout.matrix_shape[-2:]
    one = functools.partial(_KERNELS[self.kernel].dense, depth=depth, outputs=outputs,
                            **self._static())
    matrix = _over_batch(lambda o: one(**o), len(self.layout.batch))(self.operands)
    if self.input_scale is not None:
      matrix = matrix / self.input_scale
    return matrix.astype(self.dtype)

  def matmul(self, x):
    dtype = jnp.result_type(x, self.dtype)
    x = x.astype(dtype)
    if self.input_scale is not None:
      x = x / jnp.swapaxes(self.input_scale, -1, -2).astype(dtype)
    one = functools.partial(_KERNELS[self.kernel].matmul, outputs=self.layout.matrix_shape[-1],
                            **self._static())
    return _over_batch(lambda o, x: one(x, **o), len(self.layout.batch))(self.operands, x)

  def multiply_adds(self, rows):
    stored = self.operands[_KERNELS[self.kernel].stored].size
    executed = rows * (stored * 2 if self.kernel == 'int4' else stored)
    return formats.Cost(executed, min(executed, rows * self.size))


def _over_batch(f, batch: int):
  for _ in range(batch):
    f = jax.vmap(f)
  return f


def _concrete(matrix):
  if isinstance(matrix, jax.core.Tracer):
    raise bitmask.TracedMaskError
  return np.asarray(matrix)


def _over(scale, codes):
  return jnp.broadcast_to(scale, (*codes.shape[:-2], scale.shape[-2], codes.shape[-1]))


def _stacked(pack, *arrays):
  """`pack` of each matrix of a stack; the shorter of entries are padded with zeros."""
  batch = arrays[0].shape[:-2]
  if not batch:
    return jax.tree.map(jnp.asarray, pack(*arrays))
  flat = [a.reshape(-1, *a.shape[-2:]) for a in arrays]
  every = [pack(*(a[i] for a in flat)) for i in range(len(flat[0]))]

  def joined(*parts):
    most = max(p.shape[0] for p in parts)
    padded = [jnp.pad(jnp.asarray(p), [(0, most - p.shape[0])] + [(0, 0)] * (p.ndim - 1))
              for p in parts]
    return jnp.stack(padded).reshape(*batch, *padded[0].shape)

  return jax.tree.map(joined, *every)


def laid_out(stored: formats.Format) -> formats.Format:
  """The weight as a `NativeArray`, or as it is where no kernel takes it: see `prepare`."""
  if isinstance(stored, quantized.QArray):
    return _prepared_quantized(stored)
  if isinstance(stored, formats.SparseFormat):
    return _prepared_sparse(stored)
  return stored


def _prepared_quantized(stored):
  grid, scale, layout = stored.grid, stored.scale_values, stored.layout
  depth = layout.matrix_shape[-2]
  if not stored.is_plain or depth > activations.MOST_DEPTH or scale.dtype != jnp.float32:
    return stored
  sparse = formats.is_format(stored.codes)
  codes = stored.codes.dense_matrix() if sparse else packed.unpacked(stored.codes)
  if stored.group is None and _share_of_tiles(codes) <= _TILES_BELOW:
    return NativeArray.of_int8_tiles(codes, scale, layout, stored.input_scale)
  if grid.low >= -8 and grid.high <= 7 and (stored.group or 8) % nibbles.ROWS == 0:
    return NativeArray.of_int4(codes, scale, layout, stored.group, stored.input_scale)
  if stored.group is None:
    return NativeArray.of_int8(codes, scale, layout, stored.input_scale)
  return stored


def _share_of_tiles(codes) -> float:
  """The share of tiles that are not all zero; 1 where that is not known yet."""
  if isinstance(codes, jax.core.Tracer) or not codes.size:
    return 1.0
  alive = block.alive_blocks(np.asarray(codes) != 0, (tiles.ROWS, tiles.OUTPUTS))
  return float(alive.mean())


def _prepared_sparse(stored):
  if isinstance(jax.tree.leaves(stored)[0], jax.core.Tracer):
    raise bitmask.TracedMaskError
  matrix = np.asarray(stored.dense_matrix())
  if not matrix.size or matrix.dtype != np.float32:
    return stored
  kept = matrix != 0
  for length in sorted(vectors.LENGTHS, reverse=True):
    cut = block.alive_blocks(kept, (1, length))
    # Nearly all that a vector holds is kept; the edge may be shorter.
    held = cut.sum() * min(length, matrix.shape[-1])
    if held <= 1.1 * kept.sum() and cut.mean() <= _VECTORS_BELOW:
      return NativeArray.of_vectors(matrix, stored.layout, length)
  if kept.mean() <= _COLUMNS_BELOW:
    return NativeArray.of_columns(matrix, stored.layout)
  return stored
