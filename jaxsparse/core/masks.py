"""Masks of a state: who keeps what."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.core import weights
from jaxsparse.formats import block as block_format
from jaxsparse.numerics import axes
from jaxsparse.numerics import explicit_axes
from jaxsparse.numerics import packing


@explicit_axes.left_to_xla(lambda out, mask, axis: [explicit_axes.spec_of(mask)])
def _bits_of(mask, axis):
  return packing.pack(mask, 1, axis=axis)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['bits'],
                   meta_fields=['size', 'axis'])
@dataclasses.dataclass(frozen=True)
class PackedMask:
  """A mask at rest, one bit an entry: what `packed_masks` keeps in a state.

  Attributes:
    bits: uint8, the mask's shape but for one axis of `ceil(size / 8)`; the first of eight entries
      is in the lowest bit.
    size: entries along that axis.
    axis: which one, counted from the end.
  """

  bits: jax.Array
  size: int
  axis: int = -1

  @classmethod
  def pack(cls, mask: jax.Array) -> 'PackedMask':
    """Packs a bool mask along the axis that whole bytes pad least, the last of equals."""
    padding = lambda axis: -mask.shape[axis] % 8 / max(mask.shape[axis], 1)
    axis = min(range(-1, -mask.ndim - 1, -1), key=padding)
    return cls(_bits_of(mask, axis=axis), mask.shape[axis], axis)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the mask."""
    at = self.bits.ndim + self.axis
    return (*self.bits.shape[:at], self.size, *self.bits.shape[at + 1:])

  @explicit_axes.left_to_xla(lambda out, packed: [explicit_axes.spec_of(packed.bits)])
  def unpack(self) -> jax.Array:
    """The bool mask."""
    return packing.unpack(self.bits, 1, self.size, axis=self.axis).astype(jnp.bool_)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['kidx'],
                   meta_fields=['layout', 'block', 'doubly_balanced'])
@dataclasses.dataclass(frozen=True)
class BlockMask:
  """A mask of balanced blocks, by their indices: what `packed_blocks` keeps in a state.

  Attributes:
    kidx: int32 `[*batch, G, S]`: the block rows kept in each block column, ascending.
    layout: of the dense weight.
    block: `(bk, bn)`.
    doubly_balanced: whether every block row is kept equally often, too.
  """

  kidx: jax.Array
  layout: axes.Layout
  block: tuple[int, int]
  doubly_balanced: bool

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the mask."""
    return self.layout.shape

  def unpack(self) -> jax.Array:
    """The bool mask, of the weight's shape."""
    rows, _ = block_format.grid_of(self.layout.matrix_shape, self.block)
    there = self.kidx[..., None] == jnp.arange(rows).reshape(*[1] * self.kidx.ndim, rows)
    full = jnp.swapaxes(there.any(-2), -1, -2)   # [*batch, nk, nn]
    for axis, size in zip((-2, -1), self.block):
      full = jnp.repeat(full, size, axis=axis)
    r, o = self.layout.matrix_shape[-2:]
    return self.layout.from_matrix(full[..., :r, :o])

  def panels(self, weight: jax.Array) -> jax.Array:
    """What a dense weight holds in the blocks, `[*batch, G, S * bk, bn]`."""
    return block_format.gathered(self.layout.to_matrix(weight), self.kidx, None, self.block)

  def array(self, panels: jax.Array) -> block_format.BlockArray:
    """The weight that holds `panels` in the blocks and zeros elsewhere."""
    return block_format.BlockArray(panels, self.kidx, None, self.layout.astype(panels.dtype),
                                   self.block, self.doubly_balanced)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['blocks', 'latents'],
                   meta_fields=[])
@dataclasses.dataclass(frozen=True)
class WaitingBlocks:
  """Blocks that train, and the weight that all others wait in: `packed_blocks` of a backward set.

  Attributes:
    blocks: those that params hold, the forward set's first in each block column.
    latents: the weight when the blocks were chosen, in its own shape; read where they are chosen
      anew, and no parameter of the optimizer's.
  """

  blocks: BlockMask
  latents: jax.Array

  def panels(self) -> jax.Array:
    """The values of the blocks, `[*batch, G, S * bk, bn]`."""
    return self.blocks.panels(self.latents)

  def filled(self, panels: jax.Array) -> jax.Array:
    """The weight with `panels` in place of the blocks."""
    stored = self.blocks.array(panels).todense().astype(self.latents.dtype)
    return jnp.where(self.blocks.unpack(), stored, self.latents)


def is_packed(x: Any) -> bool:
  """Whether `x` is a mask in a packed form."""
  return isinstance(x, (PackedMask, BlockMask))


def unpacked(x: Any) -> Any:
  """A packed mask as bools, anything else as it is."""
  return x.unpack() if is_packed(x) else x


class MaskState(NamedTuple):
  """What a pruned weight remembers: it is gone, and starts at zero if it is grown again."""

  mask: jax.Array   # bool, the weight's shape; True keeps


class ViewState(NamedTuple):
  """What a weight remembers whose latents train on behind the mask, and come back as they are."""

  mask: jax.Array   # bool, the weight's shape; True keeps

  __dense_latents__ = True


def is_masked(value: Any) -> bool:
  """Whether a weight's state has a mask: any NamedTuple with a field of that name."""
  return isinstance(value, tuple) and 'mask' in getattr(value, '_fields', ())


def _is_node(x):
  return isinstance(x, weights.WeightsState)


def mask_entries(state: Any, *, pruned: bool = False) -> dict[str, jax.Array]:
  """{key: bool mask} of a state; masks of several stages on one weight are joined by `and`.

  Args:
    state: the state of any transform.
    pruned: leave out masks with dense latents behind them, which a regrown weight comes back from.
  """
  found = {}
  for node in jax.tree.leaves(state, is_leaf=_is_node):
    if not _is_node(node):
      continue
    for key, value in node.weights.items():
      held = getattr(value, '__dense_latents__', False) or (
          is_masked(value) and isinstance(value.mask, BlockMask))   # pruned entries are not there
      if is_masked(value) and not (pruned and held):
        mask = unpacked(value.mask)
        found[key] = found[key] & mask if key in found else mask
  return found


def held_blocks(value: Any) -> BlockMask | None:
  """The blocks that the params of a weight with this state are, None where they are all of it."""
  waiting = waiting_blocks(value)
  held = getattr(value, 'mask', None) if waiting is None else waiting.blocks
  return held if isinstance(held, BlockMask) else None


def waiting_blocks(value: Any) -> WaitingBlocks | None:
  """What a weight's state says of blocks that wait for their turn to train, None where none do."""
  backward = getattr(value, 'backward', None)
  return backward if isinstance(backward, WaitingBlocks) else None


def block_states(state: Any) -> dict[str, Any]:
  """{key: state} of the weights that are held as blocks."""
  return {key: value for node in jax.tree.leaves(state, is_leaf=_is_node) if _is_node(node)
          for key, value in node.weights.items() if held_blocks(value) is not None}


def masks(state: Any) -> dict[str, jax.Array]:
  """The masks in a transform's state.

  Args:
    state: the state of any transform, chain or rules.

  Returns:
    {weight name: bool array of the weight's shape, True keeps}.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> _, state = jsp.nm(1, 2).init({'kernel': jnp.array([[1.], [2.]])})
    >>> jsp.masks(state)['kernel'].tolist()
    [[False], [True]]
  """
  return _by_name(mask_entries(state))


def pruned_masks(state: Any) -> dict[str, jax.Array]:
  """Like `masks`, without those that latents train on behind: False is gone for the optimizer too.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> _, state = jsp.sr_ste(1, 2).init({'kernel': jnp.array([[1.], [2.]])})
    >>> list(jsp.masks(state)), list(pruned_masks(state))
    (['kernel'], [])
  """
  return _by_name(mask_entries(state, pruned=True))


def _by_name(entries):
  found = {}
  for key, mask in entries.items():
    name = names.name_of(key)
    found[name] = found[name] & mask if name in found else mask
  return found


def sparsity(state: Any) -> float:
  """The fraction of zeros over all masked weights of a state; 0.0 where there is no mask.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> _, state = jsp.magnitude(0.75).init({'kernel': jnp.ones((4, 4))})
    >>> jsp.sparsity(state)
    0.75
  """
  found = masks(state).values()
  total = sum(mask.size for mask in found)
  kept = sum(int(mask.sum()) for mask in found)
  return 1.0 - kept / total if total else 0.0
