"""Names of weights in any container, and the walk over a tree that knows latents and formats.

A weight's *name* is its path joined by '/': what patterns, reports and users see. Its *key* is
the same, except that fields of latents hang on with ':' (`kernel:w`), so that a wrapper and the
weight inside it, which share a name, are told apart. State is keyed by key.
"""

import re
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats

# Vectors by what they are, to which stacks of layers and heads of attention add axes.
_VECTORS = re.compile(r'(.*/)?(bias|scale|offset)')


class Frozen(NamedTuple):
  """Latents of a weight with nothing left to train: an empty node."""

  __latents__ = ()


class Leaf(NamedTuple):
  """One leaf of a tree, or the latents node a transform stopped at."""

  key: str
  name: str
  value: Any
  is_weight: bool   # floating, of rank >= 2, no bias, norm or step size: what to compress
  of_module: bool = False   # whether it is the attribute `weight` of an object: Equinox's


def is_latents(x: Any) -> bool:
  """Whether `x` is what a transform put in a weight's place: a NamedTuple with `__latents__`."""
  return hasattr(type(x), '__latents__')


def weight_name(path) -> str:
  """The name of a weight at a jax key path; NNX's final `.value` attribute is silent.

  Example:
    >>> path, _ = jax.tree_util.tree_flatten_with_path({'dense': {'kernel': 1.0}})[0][0]
    >>> weight_name(path)
    'dense/kernel'
  """
  path = tuple(path)
  attribute = jax.tree_util.GetAttrKey
  if len(path) > 1 and isinstance(path[-1], attribute) and path[-1].name == 'value':
    path = path[:-1]
  return jax.tree_util.keystr(path, simple=True, separator='/')


def name_of(key: str) -> str:
  """The name that belongs to a key: a latent field `w` is silent, others are path parts."""
  return re.sub(r':w(?=:|$)', '', key).replace(':', '/')


def _can_be_weight(x: Any) -> bool:
  return (hasattr(x, 'ndim') and x.ndim >= 2 and x.size > 0
          and jnp.issubdtype(x.dtype, jnp.floating))


def named_leaves(tree: Any, stop=frozenset()) -> tuple[list[Leaf], Callable[[list], Any]]:
  """Leaves of `tree` with their names, and the function that rebuilds the tree from new leaves.

  Formats are leaves. Latents are walked into, except those whose key is in `stop`.

  Args:
    tree: parameters in the model's own container, or latents.
    stop: keys at which a latents node is itself the leaf.

  Returns:
    The leaves, and `rebuild(values) -> tree`; a value may be any subtree.

  Raises:
    ValueError: two leaves have one key.
  """
  def is_leaf(path, x):
    if formats.is_format(x) or is_latents(x):
      return True
    # A method's own NamedTuple, which need not say which of its fields are weights.
    return isinstance(x, tuple) and hasattr(x, '_fields') and weight_name(path) in stop

  flat, treedef = jax.tree_util.tree_flatten_with_path(
      tree, is_leaf=is_leaf, is_leaf_takes_path=True)
  leaves: list[Leaf] = []

  def walk(key, x, is_weight, of_module):
    if not is_latents(x) or key in stop:
      weight = is_weight and (isinstance(x, tuple) or formats.is_format(x) or _can_be_weight(x))
      leaves.append(Leaf(key, name_of(key), x, weight, of_module))
      return next
    inside = [walk(f'{key}:{field}', getattr(x, field), is_weight and field in x.__latents__,
                   of_module) for field in x._fields]
    return lambda values: type(x)(*[build(values) for build in inside])

  attribute = jax.tree_util.GetAttrKey('weight')
  named = [(weight_name(path), path[-1:] == (attribute,), x) for path, x in flat]
  builders = [walk(name, x, _VECTORS.fullmatch(name) is None, of_module)
              for name, of_module, x in named]
  keys = [leaf.key for leaf in leaves]
  if len(set(keys)) != len(keys):
    twice = sorted({k for k in keys if keys.count(k) > 1})
    raise ValueError(f'Several leaves are called {twice[0]!r}; a weight needs a name of its own.')

  def rebuild(values):
    values = iter(values)
    return treedef.unflatten([build(values) for build in builders])

  return leaves, rebuild


def module_path(name: str) -> str:
  """PyTorch's name of the module that holds a weight: its path by dots, without a final `kernel`.

  Example:
    >>> module_path('layer_0/query/kernel')
    'layer_0.query'
  """
  path = name.split('/')
  return '.'.join(path[:-1] if len(path) > 1 and path[-1] in ('kernel', 'weight', 'w') else path)


def label(patterns: dict[str, str]) -> Callable[[Any], Any]:
  """A labelling of latent parameters by name, for `optax.partition`.

  Args:
    patterns: {regular expression: label}, first full match wins.

  Returns:
    A function of a tree of latents that returns the same tree of labels.

  Raises:
    ValueError: (when called) a name matches no pattern.

  Example:
    >>> label({'.*bias': 'slow', '.*': 'fast'})({'kernel': jnp.ones(2), 'bias': jnp.ones(2)})
    {'bias': 'slow', 'kernel': 'fast'}
  """
  compiled = [(compile_pattern(pattern), value) for pattern, value in patterns.items()]

  def label_of(name):
    for pattern, value in compiled:
      if pattern.fullmatch(name):
        return value
    raise ValueError(f'{name!r} matches none of {list(patterns)}.')

  def labels(params):
    leaves, rebuild = named_leaves(params)
    return rebuild([label_of(leaf.name) for leaf in leaves])

  return labels


def compile_pattern(pattern: str) -> re.Pattern:
  """A compiled name pattern.

  Raises:
    ValueError: `pattern` is not a regular expression.
  """
  try:
    return re.compile(pattern)
  except (re.error, TypeError) as error:
    raise ValueError(f'{pattern!r} is not a pattern of weight names: {error}.') from error


def no_match(pattern: str, all_names: list[str]) -> ValueError:
  """The error of a pattern that matches nothing: it lists the names there are."""
  shown = ', '.join(all_names[:20]) + (f', and {len(all_names) - 20} more'
                                       if len(all_names) > 20 else '')
  return ValueError(f'{pattern!r} matches no weight; patterns match whole names, which are: '
                    f'{shown or "none: the tree is empty"}.')
