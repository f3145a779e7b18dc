"""`packed_blocks`: training on the stored blocks alone, at the cost of what is stored.

Masked training multiplies by dense weights that happen to hold zeros. Here params are the panels of
`formats.BlockArray`, `[*batch, G, S * bk, bn]`, and so are gradients and the optimizer's moments:
forward product, input gradient and weight gradient each take the density's share of the dense
work. Only a mask update sees the dense gradient, for methods that grow by it (RigL).

A method with a *backward set*, entries that train whether the loss sees them or not (Top-KAST), has
the blocks of that set for params, those of the mask first in each panel; the state keeps what waits
outside it. Its set updates rank by values alone, and see no dense gradient either.
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
from jaxsparse.formats import trained_blocks
from jaxsparse.numerics import axes
from jaxsparse.numerics import explicit_axes


def packed_blocks(transform: transforms.Transform) -> transforms.Transform:
  """`transform` with every weight that packs to balanced blocks held as those blocks alone.

  The loss has to accept formats, so it is dispatched, and the step hands it them:

      loss = jsp.dispatch(loss_fn)
      step = jsp.train_step(loss, tx, transform, dense=False)

  Such a step differentiates to the stored blocks. One with a mask update is compiled apart, with
  the dense gradient that growth ranks by; then blocks that stay keep their values and moments,
  grown ones start at zero (`realign`), and nothing is recompiled. Inside `scan`, where one
  program decides by itself, every step computes the dense gradient.

  Of `top_kast` the blocks of its backward set train, the products use those of the forward set, and
  no step computes a dense gradient. Blocks outside wait with their values, out of reach of weight
  decay and momentum, and come back with zero moments.

  Args:
    transform: prunes by `balanced_blocks` at one sparsity: `rigl`, `sparse_evolution`, `static`,
      `magnitude`, `top_kast` or their like. A weight that blocks do not make smaller stays as it
      is, masked.

  Returns:
    A Transform whose `apply` returns `BlockArray`s, `TrainedBlocks` of a method with a backward
    set; it packs to `BlockArray`s.

  Raises:
    TypeError: `transform` is none.
    ValueError: it does more than set entries to zero (`straight_through`), or remembers more of
      each entry than a mask (`snfs`); in `init`, no weight packs to balanced blocks, sparsity is
      scheduled, or a weight is divided over explicit axes of a mesh.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = packed_blocks(jsp.rigl(0.75, pattern=jsp.balanced_blocks(2, 2)))
    >>> params, state = transform.init({'kernel': jnp.ones((16, 8))})
    >>> params['kernel'].shape                                # 4 panels of 2 blocks of 2 x 2
    (4, 4, 2)
    >>> float(jsp.densify(transform.apply(params, state))['kernel'].mean())
    0.25
    >>> method = jsp.top_kast(0.75, backward=0.5, pattern=jsp.balanced_blocks(2, 2))
    >>> packed_blocks(method).init({'kernel': jnp.ones((16, 8))})[0]['kernel'].shape
    (4, 8, 2)
  """
  if not isinstance(transform, transforms.Transform):
    raise TypeError(f'packed_blocks takes a Transform, got {transform!r}; in text form, parse it '
                    'first.')
  spelling = spell.call(packed_blocks, locals())
  wider = transform.spec.backward_masks is not None
  if not (transform.spec.projects or wider) or transform.spec.final_masks is None:
    raise ValueError('packed_blocks holds what a mask keeps; expected a method that only sets '
                     f'entries to zero, found {transform!r}.')

  def init(params, **extra):
    latents, state = transform.init(params, **extra)
    if isinstance(state, weights.WeightsState):
      state = dataclasses.replace(state, weights=_whole(state.weights))
    sizes = _sizes(transform, latents, state)
    if state.entries and not sizes:
      raise ValueError(f'no weight packs to balanced blocks under {transform!r}; expected '
                       'pattern=balanced_blocks(...) at a sparsity above zero.')
    layouts = {key: entry.layout for key, entry in state.entries}
    found = {}

    def held(key, x):
      if key not in sizes:
        return x
      _check_axes(key, x)
      _check(key, state.weights[key], layouts[key], *sizes[key])
      found[key] = _as_blocks(state.weights[key], x, layouts[key], *sizes[key])
      return masks.held_blocks(found[key]).panels(x)

    panels = _map(latents, state, held)
    return panels, dataclasses.replace(state, weights=state.weights | found)

  def apply(params, state):
    seen = transform.apply(params, _over_panels(params, state))
    return _map(seen, state, lambda key, x: _format(state.weights[key], x))

  def pack(params, state):
    return jax.tree.map(
        lambda x: x.used() if isinstance(x, trained_blocks.TrainedBlocks) else x,
        apply(params, state), is_leaf=formats.is_format)

  def update(params, state, **extra):
    opened = dataclasses.replace(state, weights={k: _opened(v) for k, v in state.weights.items()})
    if wider:
      latents = _map(params, state, lambda key, x: _filled(state.weights[key], x))
      extra['grads'] = None   # those at hand are of the blocks that train alone
    else:
      latents = formats.densify(apply(params, state))
    new = transform.update(latents, opened, **extra)
    leaves = {leaf.key: leaf.value for leaf in names.named_leaves(latents, stop={*new.weights})[0]}
    kept = {}
    for key, value in _whole(new.weights).items():
      old, blocks = state.weights[key], masks.held_blocks(state.weights[key])
      if value.mask is opened.weights[key].mask:
        kept[key] = old   # what did not move stays the same object: nothing is packed for it
      elif blocks is not None:
        slots = (old.mask.kidx.shape[-1], blocks.kidx.shape[-1])
        kept[key] = _as_blocks(value, leaves[key], blocks.layout, blocks.block, slots)
      else:
        kept[key] = value
    return dataclasses.replace(new, weights=kept)

  spec = transform.spec._replace(spelling=spelling, parts=(transform,), projects=False,
                                 restructures=True, dense_updates=not wider, takes_formats=False,
                                 backward_masks=None)
  return transforms.Transform(init, apply, update, pack, spec)


def _map(params, state, function):
  """`function(key, leaf)` of the weights that the state knows, other leaves as they are."""
  known = {key for key, entry in state.entries if not entry.superseded}
  leaves, rebuild = names.named_leaves(params, stop=known)
  return rebuild([function(leaf.key, leaf.value) if leaf.key in known else leaf.value
                  for leaf in leaves])


def _whole(states):
  """States of weights without the bits of `packed_masks`: blocks take less."""
  return jax.tree.map(masks.unpacked, states, is_leaf=masks.is_packed)


def _sizes(transform, latents, state):
  """{key: (block, (blocks of a panel in the mask, in params))} of what packs to balanced blocks."""
  if not isinstance(state, weights.WeightsState):
    raise ValueError('packed_blocks takes one method, or at(...) of it; inside a chain or rules '
                     'it holds a part.')
  layouts = {key: entry.layout for key, entry in state.entries}
  with jax.ensure_compile_time_eval():
    final = {k: np.asarray(m) for k, m in transform.spec.final_masks(layouts).items()}
    backward = transform.spec.backward_masks
    backward = {} if backward is None else {k: np.asarray(m) for k, m in backward(layouts).items()}

  def pack(latents):
    told = {k: v._replace(mask=layouts[k].from_matrix(final[k]))
            for k, v in state.weights.items()}
    return transform.pack(latents, dataclasses.replace(state, weights=told))

  packed = jax.eval_shape(pack, latents)
  found = {}
  for leaf in names.named_leaves(packed)[0]:
    stored = leaf.value
    if isinstance(stored, block_format.BlockArray) and stored.columns is None:
      used = held = stored.kidx.shape[-1]
      if leaf.key in backward:   # a distribution may round it below the mask's
        alive = block_format.alive_blocks(backward[leaf.key], stored.block)
        held = max(used, int(alive.sum(-2).max(initial=0)))
      found[leaf.key] = (stored.block, (used, held))
  return found


def _check_axes(key, x):
  spec = explicit_axes.spec_of(x)
  if any(part is not None for part in spec):
    raise ValueError(f'{names.name_of(key)}: found a weight divided by {spec} over explicit axes '
                     'of a mesh; packed_blocks expects axes of jax.sharding.AxisType.Auto.')


def _check(key, value, layout, block, slots):
  others = [f for f in value._fields if f not in ('mask', 'backward')
            and getattr(getattr(value, f), 'shape', None) == layout.shape]
  if others:
    raise ValueError(f'{names.name_of(key)}: the method remembers {others[0]} of every entry, kept '
                     'or not; packed_blocks holds the kept ones alone.')
  if isinstance(value.mask, jax.core.Tracer):
    return
  found = {f: getattr(value, f) for f in ('mask', 'backward') if f in value._fields}
  for mask, wanted in zip(found.values(), slots):
    alive = block_format.alive_blocks(layout.to_matrix(np.asarray(mask)), block)
    counts = np.unique(alive.sum(-2))
    if counts.tolist() != [wanted]:
      raise ValueError(f'{names.name_of(key)}: block columns keep {counts.tolist()} blocks at '
                       f'first and {wanted} in the end; packed_blocks needs balance and one '
                       'sparsity.')


def _as_blocks(value, latents, layout, block, slots):
  """A weight's state with indices of blocks for masks, as many of each panel as `slots` says."""
  used, held = slots
  alive = lambda mask: block_format.alive_blocks(layout.to_matrix(mask), block)
  rank = alive(value.mask).astype(jnp.int32)
  if 'backward' not in value._fields:
    return value._replace(mask=_block_mask(rank, used, layout, block))
  rank += alive(value.backward)   # 2 of the mask, 1 of the rest
  # Its rows are as they come: those of the mask alone are what products need balanced.
  blocks = dataclasses.replace(_block_mask(rank, held, layout, block), doubly_balanced=False)
  return value._replace(mask=_block_mask(rank, used, layout, block),
                        backward=masks.WaitingBlocks(blocks, latents))


def _block_mask(rank, slots, layout, block):
  """The `slots` blocks of each block column whose rank is the highest, the upper of equals."""
  order = jnp.argsort(-jnp.swapaxes(rank, -1, -2), axis=-1, stable=True)
  rows, columns = rank.shape[-2:]
  return masks.BlockMask(order[..., :slots].astype(jnp.int32), layout, block,
                         slots * columns % rows == 0)


def _opened(value):
  """A weight's state as its method knows it, masks of the weight's shape."""
  waiting = masks.waiting_blocks(value)
  value = value._replace(mask=masks.unpacked(value.mask))
  return value if waiting is None else value._replace(backward=waiting.blocks.unpack())


def _filled(value, x):
  waiting = masks.waiting_blocks(value)
  return x if waiting is None else waiting.filled(x)


def _over_panels(params, state):
  """The state of the same method with panels for weights: what it does, it does entry by entry."""
  entries, found = dict(state.entries), {}
  for leaf in names.named_leaves(params)[0]:
    key, panels, value = leaf.key, leaf.value, state.weights.get(leaf.key)
    blocks = masks.held_blocks(value)
    if blocks is None:
      continue
    # A constant, so that XLA sees where nothing is masked.
    used = np.arange(panels.shape[-2]) < value.mask.kidx.shape[-1] * blocks.block[0]
    found[key] = value._replace(mask=jnp.broadcast_to(used[:, None], panels.shape))
    if masks.waiting_blocks(value) is not None:
      found[key] = found[key]._replace(backward=jnp.ones(panels.shape, bool))
    layout = axes.Layout(panels.shape, panels.dtype, axes.default_axes(panels.ndim))
    entries[key] = entries[key]._replace(layout=layout, latents=weights.kind(panels))
  return dataclasses.replace(state, weights=state.weights | found, entries=tuple(entries.items()))


def _format(value, panels):
  blocks = masks.held_blocks(value)
  if blocks is None:
    return panels
  stored = blocks.array(panels)
  if masks.waiting_blocks(value) is None:
    return stored
  return trained_blocks.TrainedBlocks(stored, value.mask.kidx.shape[-1], value.mask.doubly_balanced)
