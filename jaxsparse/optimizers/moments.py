"""Optimizer states that follow the weights through mask and structure changes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import masks
from jaxsparse.core import names
from jaxsparse.numerics import explicit_axes


def realign(tx: optax.GradientTransformation, params: Any, opt_state: Any, old_state: Any,
            new_state: Any) -> tuple[Any, Any]:
  """Zeroes weights that were just (re)grown, and their optimizer moments.

  A grown weight starts at zero (Evci et al., arXiv:1911.11134), and a moment gathered before it
  was pruned says nothing about it now. The one place where params follow the state. Methods that
  train dense latents behind their mask (`straight_through`) are left alone. Weights held as blocks
  (`packed_blocks`) and their moments are laid out for the new mask, and blocks that waited come
  back with their values.

  Args:
    tx: the optimizer whose state it is; any that `optax.tree_map_params` understands.
    params: latent parameters.
    opt_state: the optimizer's state.
    old_state: the transform's state before its update.
    new_state: the one after.

  Returns:
    `(params, opt_state)`; the same objects when the transform has no masks.

  Example:
    >>> import jaxsparse as jsp
    >>> transform, tx = jsp.rigl(0.5, every=1, end=10), optax.sgd(0.1)
    >>> params, state = transform.init({'kernel': jnp.ones((2, 2))})
    >>> params, _ = realign(tx, params, tx.init(params), state, state)
    >>> float(params['kernel'].sum())
    4.0
  """
  params, opt_state = _relaid(tx, params, opt_state, old_state, new_state)
  old, new = (masks.mask_entries(state, pruned=True) for state in (old_state, new_state))
  grown = {key: new[key] & ~old[key] for key in new if new[key] is not old[key]}
  if not grown:
    return params, opt_state
  leaves, rebuild = names.named_leaves(params)

  def fresh(leaf):
    # A mask behind another wrapper (`lsq | nm`) is on the weight `w` that the wrapper holds.
    owner = leaf.key
    while owner not in grown and owner.endswith(':w'):
      owner = owner[:-2]
    hit = grown.get(owner)
    return hit if hit is not None and hit.shape == leaf.value.shape else jnp.zeros((), bool)

  fresh_tree = rebuild([fresh(leaf) for leaf in leaves])
  # Optimizers also hold per-parameter scalars and factored statistics; those have other shapes.
  zero = lambda x, f: _without(x, f) if f.ndim and getattr(x, 'shape', None) == f.shape else x
  params = jax.tree.map(zero, params, fresh_tree)
  # `optax.partition` and `masked` hold a placeholder for what another optimizer owns.
  masked = lambda x: isinstance(x, optax.MaskedNode)
  zero_owned = lambda x, f: x if masked(x) else zero(x, f)
  return params, optax.tree_map_params(tx, zero_owned, opt_state, fresh_tree, is_leaf=masked)


@explicit_axes.left_to_xla(lambda out, x, gone: [explicit_axes.spec_of(x)])
def _without(x, gone):
  return jnp.where(gone, jnp.zeros_like(x), x)


def _relaid(tx, params, opt_state, old_state, new_state):
  """Stored blocks moved to the slots of a new mask; in those new to it what waited, or zeros."""
  places = _places(params, old_state, new_state)
  if places is None:
    return params, opt_state
  return jax.tree.map(_entered, params, places), _all_moved(tx, opt_state, places)


def relay(tx: optax.GradientTransformation, params: Any, opt_state: Any, old_state: Any,
          new_state: Any) -> Any:
  """Moments of stored blocks (`packed_blocks`) laid out for the masks of another transform.

  Args:
    tx: the optimizer whose state it is.
    params: latents of the new transform, of the old one's structure; panels `[..., G, S * bk, bn]`
      may hold another number `S` of blocks.
    opt_state: the optimizer's state on the old latents.
    old_state: the old transform's state.
    new_state: the new one's.

  Returns:
    The optimizer's state: blocks that both masks keep have theirs, others zeros. Weights whose
    blocks have another size are left as they are.
  """
  places = _places(params, old_state, new_state)
  return opt_state if places is None else _all_moved(tx, opt_state, places)


@dataclasses.dataclass(frozen=True)
class _Place:   # no tuple, so that it is a leaf of trees
  """Where the blocks of a weight's panels come from.

  Attributes:
    source: int32 `[..., G, S]`: the slot each was in, one past the last where it was in none.
    slots: of a panel before.
    rows: of a block.
    waiting: where the values of blocks from nowhere are; None where they start at zero.
  """

  source: jax.Array
  slots: int
  rows: int
  waiting: masks.WaitingBlocks | None


def _places(params, old_state, new_state):
  """A `_Place` for each param held as blocks whose mask is another, False for others; or None."""
  old, new = masks.block_states(old_state), masks.block_states(new_state)
  found = {}
  for key in new.keys() & old.keys():
    before, after = masks.held_blocks(old[key]), masks.held_blocks(new[key])
    if after is before or (before.block, before.kidx.shape[:-1]) != (
        after.block, after.kidx.shape[:-1]):
      continue
    same = after.kidx[..., :, None] == before.kidx[..., None, :]
    slots = same.shape[-1]
    source = jnp.where(same.any(-1), same.argmax(-1), slots)
    found[key] = _Place(source, slots, after.block[0], masks.waiting_blocks(new[key]))
  if not found:
    return None
  leaves, rebuild = names.named_leaves(params)
  return rebuild([found.get(leaf.key, False) for leaf in leaves])


def _all_moved(tx, opt_state, places):
  owned = lambda x, place: x if isinstance(x, optax.MaskedNode) else _moved(x, place)
  return optax.tree_map_params(tx, owned, opt_state, places,
                               is_leaf=lambda x: isinstance(x, optax.MaskedNode))


def _entered(x, place):
  if not place or place.waiting is None:
    return _moved(x, place)
  entering = jnp.repeat(place.source == place.slots, place.rows, axis=-1)
  return jnp.where(entering[..., None], place.waiting.panels().astype(x.dtype), _moved(x, place))


def _moved(x, place):
  # Optimizers also hold per-parameter scalars and factored statistics; those have other shapes.
  if not place or jnp.shape(x)[:-1] != (*place.source.shape[:-1], place.slots * place.rows):
    return x
  source = place.source
  blocks = x.reshape(*source.shape[:-1], place.slots, place.rows, x.shape[-1])
  blocks = jnp.pad(blocks, [(0, 0)] * (source.ndim - 1) + [(0, 1), (0, 0), (0, 0)])
  found = jnp.take_along_axis(blocks, source[..., None, None], axis=-3)
  return found.reshape(*source.shape[:-1], -1, x.shape[-1])


def transplant(new: Any, old: Any) -> Any:
  """`new` with every leaf that `old` has at the same path, shape and dtype."""
  at_path = lambda tree: {jax.tree_util.keystr(path): x
                          for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
  source = at_path(old)

  def pick(path, x):
    y = source.get(jax.tree_util.keystr(path))
    same = y is not None and jnp.shape(y) == jnp.shape(x) and y.dtype == x.dtype
    return y if same else x

  return jax.tree_util.tree_map_with_path(pick, new)
