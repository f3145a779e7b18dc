"""`packed_blocks`: training on the stored blocks alone, at the cost of what is stored.

Masked training multiplies by dense weights that happen to hold zeros. Here params are the panels of
`formats.BlockArray`, `[*batch, G, S * bk, bn]`, and so are gradients and the optimizer's moments:
forward product, input gradient and weight gradient each take the density's share of the dense
work. Only a mask update sees the dense gradient, for methods that grow by it (RigL).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import masks
from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import block as block_format
from jaxsparse.formats import format as formats


def packed_blocks(transform: transforms.Transform) -> transforms.Transform:
  """`transform` with every weight that packs to balanced blocks held as those blocks alone.

  The loss has to accept formats, so it is dispatched, and the step hands it them:

      loss = jsp.dispatch(loss_fn)
      step = jsp.train_step(loss, tx, transform, dense=False)

  Such a step differentiates to the stored blocks. One with a mask update is compiled apart, with
  the dense gradient that growth ranks by; then blocks that stay keep their values and moments,
  grown ones start at zero (`realign`), and nothing is recompiled. Inside `scan`, where one
  program decides by itself, every step computes the dense gradient.

  Args:
    transform: prunes by `balanced_blocks` at one sparsity: `rigl`, `sparse_evolution`, `static`,
      `magnitude` or their like. A weight that blocks do not make smaller stays as it is, masked.

  Returns:
    A Transform whose `apply` returns `BlockArray`s.

  Raises:
    TypeError: `transform` is none.
    ValueError: it does more than set entries to zero (`top_kast`), or remembers more of each entry
      than a mask (`snfs`); in `init`, no weight packs to balanced blocks, or sparsity is scheduled.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = packed_blocks(jsp.rigl(0.75, pattern=jsp.balanced_blocks(2, 2)))
    >>> params, state = transform.init({'kernel': jnp.ones((16, 8))})
    >>> params['kernel'].shape                                # 4 panels of 2 blocks of 2 x 2
    (4, 4, 2)
    >>> float(jsp.densify(transform.apply(params, state))['kernel'].mean())
    0.25
  """
  if not isinstance(transform, transforms.Transform):
    raise TypeError(f'packed_blocks takes a Transform, got {transform!r}; in text form, parse it '
                    'first.')
  spelling = spell.call(packed_blocks, locals())
  if not transform.spec.projects or transform.spec.final_masks is None:
    raise ValueError('packed_blocks holds what a mask keeps; expected a method that only sets '
                     f'entries to zero, found {transform!r}.')

  def init(params, **extra):
    latents, state = transform.init(params, **extra)
    entries = dict(state.entries)
    sizes = _sizes(transform, latents, state)
    if entries and not sizes:
      raise ValueError(f'no weight packs to balanced blocks under {transform!r}; expected '
                       'pattern=balanced_blocks(...) at a sparsity above zero.')
    found = {}
    for key, (block, slots) in sizes.items():
      _check(key, state.weights[key], entries[key].layout, block, slots)
      mask = _stored(state.weights[key].mask, entries[key].layout, block, slots)
      found[key] = state.weights[key]._replace(mask=mask)
    state = dataclasses.replace(state, weights=state.weights | found)
    pick = lambda key, x: x if key not in found else block_format.gathered(
        entries[key].layout.to_matrix(x), found[key].mask.kidx, None, found[key].mask.block)
    return _map(latents, state, pick), state

  def apply(params, state):
    def view(key, x):
      mask = state.weights[key].mask
      if not isinstance(mask, masks.BlockMask):
        return jnp.where(mask, x, 0)
      return block_format.BlockArray(x, mask.kidx, None, mask.layout.astype(x.dtype), mask.block,
                                     mask.doubly_balanced)
    return _map(params, state, view)

  def update(params, state, **extra):
    opened = dataclasses.replace(state, weights={
        k: v._replace(mask=masks.unpacked(v.mask)) for k, v in state.weights.items()})
    new = transform.update(formats.densify(apply(params, state)), opened, **extra)
    kept = {}
    for key, value in new.weights.items():
      old, mask = state.weights[key], value.mask
      if mask is opened.weights[key].mask:
        kept[key] = old   # what did not move stays the same object: nothing is packed for it
      elif isinstance(old.mask, masks.BlockMask):
        slots = old.mask.kidx.shape[-1]
        kept[key] = value._replace(mask=_stored(mask, old.mask.layout, old.mask.block, slots))
      else:
        kept[key] = value
    return dataclasses.replace(new, weights=kept)

  spec = transform.spec._replace(spelling=spelling, parts=(transform,), projects=False,
                                 restructures=True, dense_updates=True, takes_formats=False)
  return transforms.Transform(init, apply, update, apply, spec)


def _map(params, state, function):
  """`function(key, leaf)` of the weights that the state knows, other leaves as they are."""
  known = {key for key, entry in state.entries if not entry.superseded}
  leaves, rebuild = names.named_leaves(params, stop=known)
  return rebuild([function(leaf.key, leaf.value) if leaf.key in known else leaf.value
                  for leaf in leaves])


def _sizes(transform, latents, state):
  """{key: (block, blocks in a panel)} of the weights that pack to balanced blocks."""
  if not isinstance(state, weights.WeightsState):
    raise ValueError('packed_blocks takes one method, or at(...) of it; inside a chain or rules '
                     'it holds a part.')
  layouts = {key: entry.layout for key, entry in state.entries}
  with jax.ensure_compile_time_eval():
    final = {k: np.asarray(m) for k, m in transform.spec.final_masks(layouts).items()}

  def pack(latents):
    told = {k: v._replace(mask=layouts[k].from_matrix(final[k]))
            for k, v in state.weights.items()}
    return transform.pack(latents, dataclasses.replace(state, weights=told))

  packed = jax.eval_shape(pack, latents)
  return {leaf.key: (leaf.value.block, leaf.value.kidx.shape[-1])
          for leaf in names.named_leaves(packed)[0]
          if isinstance(leaf.value, block_format.BlockArray) and leaf.value.columns is None}


def _check(key, value, layout, block, slots):
  others = [f for f in value._fields if f != 'mask'
            and getattr(getattr(value, f), 'shape', None) == layout.shape]
  if others:
    raise ValueError(f'{names.name_of(key)}: the method remembers {others[0]} of every entry, kept '
                     'or not; packed_blocks holds the kept ones alone.')
  if isinstance(value.mask, jax.core.Tracer):
    return
  alive = block_format.alive_blocks(layout.to_matrix(np.asarray(value.mask)), block)
  counts = np.unique(alive.sum(-2))
  if counts.tolist() != [slots]:
    raise ValueError(f'{names.name_of(key)}: block columns keep {counts.tolist()} blocks at first '
                     f'and {slots} in the end; packed_blocks needs balance and one sparsity.')


def _stored(mask, layout, block, slots):
  alive = block_format.alive_blocks(layout.to_matrix(mask), block)
  order = jnp.argsort(~jnp.swapaxes(alive, -1, -2), axis=-1, stable=True)
  rows, columns = alive.shape[-2:]
  return masks.BlockMask(order[..., :slots].astype(jnp.int32), layout, block,
                         slots * columns % rows == 0)
