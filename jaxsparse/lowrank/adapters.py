"""What is done with trained adapters: merged, taken off, mixed, or chosen example by example.

These work on what a transform makes of its weights, so on `lora`, `dora`, `adalora` and whatever
else shows a base and factors beside it (`LowRankArray`), over a compressed base or not.
"""

from typing import Any, Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import transform as transforms
from jaxsparse.formats import adapters as adapters_format
from jaxsparse.formats import format as formats
from jaxsparse.formats import low_rank


def merge(transform: transforms.Transform, params: Any, state: Any) -> Any:
  """The model's own tree with every adapter merged into its weight: dense, no cost at inference.

  Args:
    transform: the one that was trained.
    params: its latents.
    state: its state.

  Returns:
    `densify(transform.apply(params, state))`. Nothing is written to params or state: `unmerge`
    gives the bases back whenever they are wanted.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.lora(1, alpha=1.0)
    >>> params, state = transform.init({'kernel': jnp.ones((2, 2))})
    >>> params['kernel'] = jsp.Lora(jnp.ones((2, 1)), jnp.ones((1, 2)))
    >>> merge(transform, params, state)['kernel'].tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    >>> unmerge(transform, params, state)['kernel'].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
  """
  return formats.densify(transform.apply(params, state))


def unmerge(transform: transforms.Transform, params: Any, state: Any) -> Any:
  """The model's own tree without adapters: the bases as the model saw them, to the bit.

  Nothing is subtracted, so a base is what it was however large the adapter became.

  Args:
    transform: the one that was trained.
    params: its latents.
    state: its state.

  Raises:
    ValueError: the transform shows no adapter: it has none, or a later stage of a chain hides it.
  """
  return _map_adapted(lambda name, w: _own(w, w.base), transform.apply(params, state))


def mix_adapters(transform: transforms.Transform, adapters: Sequence[Any], state: Any,
                 weights: Sequence[float]) -> Any:
  """Several adapters at once, each so strong: `base + sum_i weights[i] (adapted_i - base)`.

  Ilharco et al., "Editing Models with Task Arithmetic" (arXiv:2212.04089). The factors of LoRA are
  joined, so that the mixture is exact and still low rank; those of DoRA, which scale their base
  too, are multiplied out.

  Args:
    transform: under which all were trained.
    adapters: its latents, one tree an adapter; what is not adapted is taken from the first.
    state: its state, the common base.
    weights: one an adapter; they need not sum to one, and may be negative.

  Returns:
    The model's own tree, with `LowRankArray`s for `dispatch`; `densify` it to merge.

  Raises:
    ValueError: there are no adapters, or another number of weights, or what `unmerge` raises.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.lora(1, alpha=1.0)
    >>> first, state = transform.init({'kernel': jnp.zeros((2, 1))})
    >>> first = {'kernel': jsp.Lora(jnp.ones((2, 1)), jnp.ones((1, 1)))}
    >>> second = {'kernel': jsp.Lora(jnp.ones((2, 1)), 10 * jnp.ones((1, 1)))}
    >>> mixed = mix_adapters(transform, [first, second], state, [0.5, 0.25])
    >>> jsp.densify(mixed)['kernel'].tolist()
    [[3.0], [3.0]]
  """
  if len(weights) != len(adapters):
    raise ValueError(f'Expected one weight an adapter: found {len(weights)} weights and '
                     f'{len(adapters)} adapters.')
  first, others = _views(transform, adapters, state)

  def mixed(name, w):
    parts = [w, *(other[name] for other in others)]
    if w.gain is not None:
      base = formats.densify(w.base)
      moved = [weight * (part.dense_matrix() - base) for weight, part in zip(weights, parts)]
      return _own(w, base + sum(moved))
    u = jnp.concatenate([part.u for part in parts], -1)
    v = jnp.concatenate([part.v * weight for weight, part in zip(weights, parts)], -2)
    return low_rank.LowRankArray(u, v, w.layout, w.base)

  return _map_adapted(mixed, first)


def choose_adapters(transform: transforms.Transform, adapters: Sequence[Any], state: Any,
                    index: jax.Array) -> Any:
  """A batch in which each example is served by an adapter of its own, on one base.

  The base's product is computed once for all; the factors are gathered by example. `dispatch` the
  model on the result: its outputs are those of each example run alone with its adapter.

  Args:
    transform: under which all were trained.
    adapters: its latents, one tree an adapter; what is not adapted is taken from the first.
    state: its state, the common base.
    index: int `[examples]`, which adapter each example uses; -1 is the base alone, and so is, where
      the index is traced and cannot be checked, whatever else is not there.

  Returns:
    The model's own tree with `AdaptersArray`s, for products alone: activations have the examples
    as their leading axis, and lookups, convolutions and arithmetic on an adapted weight raise.

  Raises:
    ValueError: there are no adapters, an index names none, or what `unmerge` raises.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.lora(1, alpha=1.0)
    >>> first, state = transform.init({'w': jnp.zeros((2, 1))})
    >>> second = {'w': jsp.Lora(jnp.ones((2, 1)), jnp.ones((1, 1)))}
    >>> tree = choose_adapters(transform, [first, second], state, jnp.array([1, 0, -1]))
    >>> jsp.dispatch(lambda params, x: x @ params['w'])(tree, jnp.ones((3, 2))).tolist()
    [[2.0], [0.0], [0.0]]
  """
  first, others = _views(transform, adapters, state)
  index = jnp.asarray(index)
  if index.ndim != 1 or not jnp.issubdtype(index.dtype, jnp.integer):
    raise ValueError('index must be one integer an example, `[examples]`; got '
                     f'{index.dtype}{list(index.shape)}.')
  if not isinstance(index, jax.core.Tracer):
    wrong = set(np.asarray(index).tolist()) - set(range(-1, len(adapters)))
    if wrong:
      raise ValueError(f'index names adapter {min(wrong)}; there are {len(adapters)}, from 0, and '
                       '-1 for none.')

  def chosen(name, w):
    parts = [w, *(other[name] for other in others)]
    stack = lambda field: jnp.stack([getattr(part, field) for part in parts], -3)
    batch = w.layout.matrix_shape[:-2]
    spread = jnp.broadcast_to(index.astype(jnp.int32), (*batch, *index.shape))
    gain = None if w.gain is None else stack('gain')
    return adapters_format.AdaptersArray(stack('u'), stack('v'), spread, w.layout, w.base, gain)

  return _map_adapted(chosen, first)


def _views(transform, adapters, state):
  """The first adapter's tree, and of the others {name: LowRankArray}."""
  if not adapters:
    raise ValueError('Expected at least one adapter.')
  first, *others = [transform.apply(params, state) for params in adapters]
  found = []
  for other in others:
    by_name = {}
    _map_adapted(lambda name, w, by_name=by_name: by_name.setdefault(name, w), other)
    found.append(by_name)
  return first, found


def _map_adapted(f: Callable, tree: Any) -> Any:
  """`f(path, w)` in place of every weight that has a base; other formats are densified."""
  count = []

  def visit(path, x):
    if isinstance(x, low_rank.LowRankArray) and x.base is not None:
      count.append(path)
      return f(jax.tree_util.keystr(path), x)
    return x.todense() if formats.is_format(x) else x

  out = jax.tree_util.tree_map_with_path(visit, tree, is_leaf=formats.is_format)
  if not count:
    raise ValueError('No weight shows an adapter: expected a transform such as lora(), as the last '
                     'stage where it is in a chain.')
  return out


def _own(w, matrix):
  """A matrix in the shape and dtype of the weight `w` stands for."""
  return w.layout.from_matrix(formats.densify(matrix)).astype(w.dtype)
