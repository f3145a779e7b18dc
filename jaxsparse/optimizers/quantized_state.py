"""Optimizer states in 8 or 4 bits, around any optax transformation.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv:2110.02861), with the codes
of `numerics.companding` in place of their map: second moments never become zero. State is decoded,
updated by the inner transformation, and encoded again; nothing need be known of the inner one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import companding
from jaxsparse.numerics import explicit_axes

_BLOCKS = {8: 128, 4: 64}


class QuantizedState(NamedTuple):
  """State of a `quantized_state` optimizer: two trees like the inner optimizer's state."""

  codes: Any    # uint8 where quantized, else the inner state's own leaf
  scales: Any   # float32 where quantized, else an empty float32 scalar


def quantized_state(tx: optax.GradientTransformation, *, bits: int = 8, block: int | None = None,
                    only: str | None = None) -> optax.GradientTransformationExtraArgs:
  """`tx` with its floating state in `bits` bits, a float32 scale for every `block` values.

  Codes of 8 bits have the shape of what they stand for, so they shard like it; of 4 bits they are
  packed along the first axis. Leaves with fewer values than a block, and integers, stay whole. Wrap
  the innermost transformation that holds moments: accumulated gradients (`MultiSteps`) and copies
  of params (`lookahead`) would be rounded too.

  Args:
    tx: any optax transformation; extra arguments are passed on to it.
    bits: 8 or 4. With 4, watch the loss.
    block: values that share a scale; 128 for 8 bits, 64 for 4, when None.
    only: a regular expression that the whole path of a state leaf ('0/mu/dense/kernel') must match
      for it to be quantized; None takes all.

  Returns:
    An optax transformation with state `QuantizedState`.

  Raises:
    ValueError: `bits` is neither 8 nor 4, or `block` is no positive integer; or, in `init`, `only`
      matches no leaf of the state.

  Example:
    >>> tx, params = quantized_state(optax.adam(0.1)), {'w': jnp.ones((256, 256))}
    >>> state = tx.init(params)
    >>> bytes_of = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    >>> round(bytes_of(state) / bytes_of(optax.adam(0.1).init(params)), 3)
    0.258
  """
  if bits not in _BLOCKS or isinstance(bits, bool):
    raise ValueError(f'bits must be 8 or 4, got {bits!r}.')
  block = _BLOCKS[bits] if block is None else block
  if isinstance(block, bool) or not isinstance(block, int) or block < 1:
    raise ValueError(f'block must be a positive number of values, got {block!r}.')
  matches = names.compile_pattern(only).fullmatch if only is not None else lambda name: True
  tx = optax.with_extra_args_support(tx)

  @explicit_axes.left_to_xla(_places_of_codes)
  def encode(arrays, old):
    del old
    return companding.encode_alike(arrays, bits=bits, block=block)

  @explicit_axes.left_to_xla(lambda out, codes, scale, x: [getattr(x.sharding, 'spec', jax.P())])
  def decode(codes, scale, x):
    return companding.decode(codes, scale, x.shape, bits=bits, block=block).astype(x.dtype)

  def encoded(state, params, old=None):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    pairs = [(x, jnp.zeros([], jnp.float32)) for _, x in leaves]
    held = None if old is None else [*zip(*map(treedef.flatten_up_to, old))]
    taken = {n: leaf for n, leaf in enumerate(leaves) if _takes(*leaf, block, matches)}
    for alike in _by_param(taken, params):
      coded = encode([taken[n][1] for n in alike], held and [held[n] for n in alike])
      for n, pair in zip(alike, coded):
        pairs[n] = pair
    codes, scales = (treedef.unflatten(part) for part in ([p[0] for p in pairs],
                                                          [p[1] for p in pairs]))
    return QuantizedState(codes, scales)

  def decoded(state, like):
    leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
    codes, scales = treedef.flatten_up_to(state.codes), treedef.flatten_up_to(state.scales)
    return treedef.unflatten([
        decode(c, s, x) if _takes(path, x, block, matches) else c
        for (path, x), c, s in zip(leaves, codes, scales)])

  def init(params):
    state = tx.init(params)
    if only is not None and jax.tree.leaves(params):
      found = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
      if not any(map(matches, found)):
        raise ValueError(f'{only!r} matches no leaf of the optimizer state; it has '
                         f'{", ".join(found) or "none"}.')
    return encoded(state, params)

  def update(updates, state, params=None, **extra):
    # Shapes alone are asked for, and gradients have those of the params.
    like = updates if params is None else params
    shapes = jax.eval_shape(tx.init, like)
    updates, inner = tx.update(updates, decoded(state, shapes), params, **extra)
    return updates, encoded(inner, like, state)

  return optax.GradientTransformationExtraArgs(init, update)


def _places_of_codes(out, arrays, old):
  """Codes and scales lie like what they stand for, and stay where they were."""
  del out
  like = [x for x in arrays for _ in range(2)] if old is None else jax.tree.leaves(old)
  return [*map(explicit_axes.spec_of, like)]


def _takes(path, x, block, matches) -> bool:
  return transforms.is_floating(x) and x.ndim > 0 and x.size >= block and matches(_name(path))


def _by_param(leaves, params) -> list[list[int]]:
  """Keys of `(path, array)`s, together where they are of one weight, as their paths end in its.

  Moments of a weight are made of the same gradient, so it is read once for the ranges of them all.
  """
  known = {path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]}
  lengths = sorted({len(path) for path in known}, reverse=True)
  groups: dict[Any, list[int]] = {}
  for n, (path, x) in leaves.items():
    ends = (path[len(path) - k:] for k in lengths if k <= len(path))
    of = next((end for end in ends if end in known), path)
    groups.setdefault((of, x.shape, x.dtype), []).append(n)
  return list(groups.values())


def _name(path) -> str:
  return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
