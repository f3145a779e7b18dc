"""`packed_masks`: the masks of any transform kept as one bit a weight.

A bool array takes a byte an entry. Packed, eight entries along one axis share one, so that a mask
adds an eighth of a byte to a weight: 0.125 beside the 8 bytes of Adam's float32 moments.
"""

import jax
import jax.numpy as jnp

from jaxsparse.core import masks
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms


def packed_masks(transform: transforms.Transform) -> transforms.Transform:
  """`transform` with every mask in its state packed eight to a byte.

  Along the axis that whole bytes pad least, so that `[784, 10]` takes one bit an entry as well; at
  most 7 entries' bits are lost for each of the others', none where any axis is a multiple of 8.

  Masks and weights are those of `transform`, bit for bit; `masks`, `sparsity`, `realign`, `plan`
  and checkpoints see through the packing. `apply` unpacks in the program that uses the mask, and an
  update without a new mask returns the packed one it was given.

  Args:
    transform: any transform, chain or rules; one without masks is left as it is.

  Returns:
    A Transform whose state has a `PackedMask` for each bool array of rank 2 or more.

  Raises:
    TypeError: `transform` is none.

  Example:
    >>> import jaxsparse as jsp
    >>> _, state = packed_masks(jsp.nm(2, 4)).init({'kernel': jnp.ones((16, 10))})
    >>> state.weights['kernel'].mask.bits.shape, jsp.masks(state)['kernel'].shape
    ((2, 10), (16, 10))
  """
  if not isinstance(transform, transforms.Transform):
    raise TypeError(f'packed_masks takes a Transform, got {transform!r}; in text form, parse it '
                    'first.')
  spelling = spell.call(packed_masks, locals())

  def init(params, **extra):
    latents, state = transform.init(params, **extra)
    return latents, _pack(state)

  def update(params, state, **extra):
    found, structure = jax.tree.flatten(state, is_leaf=_is_bits)
    opened = [_opened(x) for x in found]
    new = jax.tree.leaves(transform.update(params, structure.unflatten(opened), **extra))
    # What the update left alone stays the same object: nothing is packed for it.
    kept = [x if n is o else _pack(n) for x, o, n in zip(found, opened, new)]
    return structure.unflatten(kept)

  return transforms.Transform(
      init, lambda params, state: transform.apply(params, _unpack(state)), update,
      lambda params, state: transform.pack(params, _unpack(state)),
      transform.spec._replace(spelling=spelling, parts=(transform,)))


def _is_bits(x) -> bool:
  return isinstance(x, masks.PackedMask)   # blocks of `packed_blocks` stay what they are


def _opened(x):
  return x.unpack() if _is_bits(x) else x


def _pack(tree):
  is_mask = lambda x: getattr(x, 'dtype', None) == jnp.bool_ and x.ndim >= 2
  return jax.tree.map(lambda x: masks.PackedMask.pack(x) if is_mask(x) else x, tree)


def _unpack(tree):
  return jax.tree.map(_opened, tree, is_leaf=_is_bits)
