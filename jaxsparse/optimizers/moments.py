"""Optimizer states that follow the weights through mask and structure changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import masks
from jaxsparse.core import names


def realign(tx: optax.GradientTransformation, params: Any, opt_state: Any, old_state: Any,
            new_state: Any) -> tuple[Any, Any]:
  """Zeroes weights that were just (re)grown, and their optimizer moments.

  A grown weight starts at zero (Evci et al., arXiv:1911.11134), and a moment gathered before it
  was pruned says nothing about it now. The one place where params follow the state. Methods that
  train dense latents behind their mask (`straight_through`) are left alone. Weights held as blocks
  (`packed_blocks`) and their moments are laid out for the new mask.

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
  zero = lambda x, f: (jnp.where(f, jnp.zeros_like(x), x)
                       if f.ndim and getattr(x, 'shape', None) == f.shape else x)
  params = jax.tree.map(zero, params, fresh_tree)
  # `optax.partition` and `masked` hold a placeholder for what another optimizer owns.
  masked = lambda x: isinstance(x, optax.MaskedNode)
  zero_owned = lambda x, f: x if masked(x) else zero(x, f)
  return params, optax.tree_map_params(tx, zero_owned, opt_state, fresh_tree, is_leaf=masked)


def _relaid(tx, params, opt_state, old_state, new_state):
  """Stored blocks moved to the slots of a new mask, zeros in those that are new to it."""
  old, new = masks.block_masks(old_state), masks.block_masks(new_state)
  moved = {key for key in new if new[key] is not old[key]}
  if not moved:
    return params, opt_state
  leaves, rebuild = names.named_leaves(params)
  # The index of each slot's block in the old layout, one past the end where it was not kept.
  sources = {}
  for key in moved:
    same = new[key].kidx[..., :, None] == old[key].kidx[..., None, :]
    sources[key] = jnp.where(same.any(-1), same.argmax(-1), same.shape[-1])
  source_tree = rebuild([sources.get(leaf.key, jnp.zeros((), jnp.int32)) for leaf in leaves])

  def move(x, source):
    if not source.ndim or getattr(x, 'ndim', 0) != source.ndim + 1:
      return x
    slots = source.shape[-1]
    blocks = x.reshape(*source.shape, x.shape[-2] // slots, x.shape[-1])
    blocks = jnp.pad(blocks, [(0, 0)] * (source.ndim - 1) + [(0, 1), (0, 0), (0, 0)])
    return jnp.take_along_axis(blocks, source[..., None, None], axis=-3).reshape(x.shape)

  owned = lambda x, source: x if isinstance(x, optax.MaskedNode) else move(x, source)
  params = jax.tree.map(move, params, source_tree)
  return params, optax.tree_map_params(
      tx, owned, opt_state, source_tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode))


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
