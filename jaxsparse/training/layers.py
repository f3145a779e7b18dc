"""Dropping whole layers: of a scanned stack, or blocks called by number.

Depth pruning as in Sajjad et al., "On the Effect of Dropping Layers of Pre-trained Transformer
Models" (arXiv:2004.03844). Which layers to keep is the caller's choice; `layer_change` ranks them
by how little they do to their input, as "ShortGPT" (Men et al., arXiv:2403.03853) does.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names


def keep_layers(tree: Any, keep: Sequence[int], *, at: str) -> Any:
  """A tree whose stacked weights `[layer, ...]` hold only the layers of `keep`, in that order.

  Serves params and optimizer states alike, whose moments are named `.../<weight>`: start the
  pattern with `.*`. Masks are chosen anew, by `transform.init` on what is left.

  Args:
    tree: params, or an optimizer's state.
    keep: indices of layers, each at most once.
    at: pattern of the names of the stacked arrays; it matches whole names. Arrays of rank 0 (the
      placeholders some optimizers hold) stay.

  Returns:
    The same tree with fewer layers.

  Raises:
    ValueError: the pattern matches nothing, stacks differ in depth, or an index is out of range.

  Example:
    >>> params = {'blocks': {'kernel': jnp.arange(3.0).reshape(3, 1, 1)}, 'head': jnp.ones(2)}
    >>> keep_layers(params, [0, 2], at='blocks/.*')['blocks']['kernel'].ravel().tolist()
    [0.0, 2.0]
  """
  pattern = names.compile_pattern(at)
  leaves, rebuild = names.named_leaves(tree)
  stacks = {leaf.key: leaf for leaf in leaves
            if pattern.fullmatch(leaf.name) and getattr(leaf.value, 'ndim', 0)}
  if not stacks:
    raise names.no_match(at, [leaf.name for leaf in leaves])
  depths = {leaf.name: leaf.value.shape[0] for leaf in stacks.values()}
  depth = next(iter(depths.values()))
  for name, found in depths.items():
    if found != depth:
      raise ValueError(f'{name}: found {found} layers, expected {depth} as in '
                       f'{next(iter(depths))}.')
  index = np.asarray(_checked(keep, range(depth)))
  return rebuild([leaf.value[index] if leaf.key in stacks else leaf.value for leaf in leaves])


def keep_blocks(tree: Any, keep: Sequence[int], *, prefix: str) -> Any:
  """A tree with only the blocks of `keep` among `<prefix>0`, `<prefix>1`, ..., numbered anew.

  Args:
    tree: params, or an optimizer's state: dicts, lists, tuples and NamedTuples of arrays. A dict
      without such blocks stays as it is.
    keep: numbers of blocks, each at most once, in the order that they get.
    prefix: of the blocks' keys: 'block_', 'encoderblock_'; '' where keys are bare numbers.

  Returns:
    The same containers, `<prefix>0` to `<prefix>{len(keep) - 1}` in each dict that had blocks.

  Raises:
    ValueError: there are no such blocks, or a number is not among them.

  Example:
    >>> keep_blocks({'block_0': 'a', 'block_1': 'b', 'block_2': 'c', 'head': 'd'}, [0, 2],
    ...             prefix='block_')
    {'block_0': 'a', 'block_1': 'c', 'head': 'd'}
  """
  numbered = re.compile(re.escape(prefix) + r'(\d+)')
  hits = []

  def walk(node):
    if isinstance(node, tuple) and hasattr(node, '_fields'):
      return type(node)(*map(walk, node))
    if isinstance(node, (list, tuple)):
      return type(node)(map(walk, node))
    if not isinstance(node, Mapping):
      return node
    found = {key: numbered.fullmatch(str(key)) for key in node}
    blocks = {int(match[1]): key for key, match in found.items() if match}
    if not blocks:
      return type(node)({key: walk(value) for key, value in node.items()})
    hits.append(blocks)
    # NNX numbers the modules of a list by integers.
    called = lambda i, key: i if isinstance(key, int) else f'{prefix}{i}'
    chosen = {called(i, blocks[n]): node[blocks[n]] for i, n in enumerate(_checked(keep, blocks))}
    rest = {key: walk(value) for key, value in node.items() if key not in blocks.values()}
    return type(node)(chosen | rest)

  out = walk(tree)
  if not hits:
    raise ValueError(f'No dict of the tree has blocks called {prefix}0, {prefix}1, ...')
  return out


def layer_change(states: Any) -> jax.Array:
  """How much each layer changes its input: 1 minus the mean cosine of input and output.

  The smaller, the less is lost by dropping the layer.

  Args:
    states: hidden states before the first layer and after each: `[layers + 1, ..., features]`.

  Returns:
    float32 `[layers]`, in [0, 2].

  Raises:
    ValueError: there are fewer than two states.

  Example:
    >>> layer_change(jnp.array([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 3.0]]])).tolist()
    [0.0, 1.0]
  """
  states = jnp.asarray(states, jnp.float32)
  if states.ndim < 2 or states.shape[0] < 2:
    raise ValueError(f'Expected states [layers + 1, ..., features] of at least one layer, got '
                     f'shape {states.shape}.')
  before, after = states[:-1], states[1:]
  norms = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
  cosine = (before * after).sum(-1) / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
  return 1 - cosine.reshape(cosine.shape[0], -1).mean(-1)


def _checked(keep, there):
  keep = list(keep)
  wrong = [n for n in keep if n not in there]
  if wrong or not keep or len(set(keep)) != len(keep):
    raise ValueError(f'keep={keep} must name layers out of {sorted(there)}, each at most once and '
                     'at least one.')
  return keep
