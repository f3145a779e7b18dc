"""`treewise`: functions of `{key: matrix}` lifted to a Transform.

Here, once for all methods: which leaves are weights, the matrix view by role, state keyed by
weight, the step count, and errors that name the weight.
"""

import dataclasses
import inspect
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import axes as roles
from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.numerics import explicit_axes


class Absent(NamedTuple):
  """Stands where a leaf is hidden from a transform's `init`: an empty node."""


class Entry(NamedTuple):
  """What is static about one weight of a state."""

  layout: roles.Layout
  latents: str               # what stands in the weight's place: an array's shape, or a type
  superseded: bool = False   # a later stage of the chain took the weight over


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WeightsState:
  """State of a transform: a count, and what each weight remembers.

  Attributes:
    count: int32 `()`, updates so far.
    weights: {key: the method's state of that weight}, readable as
      `state.weights['block_0/mlp/kernel'].mask`.
    entries: static `((key, Entry), ...)`.
  """

  count: jax.Array
  weights: dict[str, Any]
  entries: tuple[tuple[str, Entry], ...] = dataclasses.field(
      default=(), metadata={'static': True})

  def active(self) -> dict[str, Entry]:
    """Entries whose weight is still this transform's, by key."""
    return {key: entry for key, entry in self.entries if not entry.superseded}


def offered(fn: Callable, **keywords):
  """Calls a method's function with those of `keywords` that its signature names.

  So that `lambda w, state: ...` is a method, and one that wants the count says so.
  """
  parameters = inspect.signature(fn).parameters.values()
  if not any(p.kind is p.VAR_KEYWORD for p in parameters):
    wanted = {p.name for p in parameters}
    keywords = {k: v for k, v in keywords.items() if k in wanted}
  return lambda *args: fn(*args, **keywords)


def _map_view(tree: Any, wanted: tuple[int, ...], view: Callable) -> Any:
  """Views leaves of shape `wanted`; formats and everything else stay."""
  fits = lambda x: not formats.is_format(x) and getattr(x, 'shape', None) == wanted
  return jax.tree.map(lambda x: view(x) if fits(x) else x, tree, is_leaf=formats.is_format)


def to_matrices(tree: Any, layout: roles.Layout) -> Any:
  """Leaves of the weight's shape as matrices."""
  return _map_view(tree, layout.shape, layout.to_matrix)


def from_matrices(tree: Any, layout: roles.Layout) -> Any:
  """Leaves of the matrix shape in the weight's own shape, so that they shard and read like it."""
  return _map_view(tree, layout.matrix_shape, layout.from_matrix)


def treewise(init: Callable, apply: Callable, update: Callable | None = None,
             pack: Callable | None = None, *,
             spec: transforms.Spec = transforms.Spec()) -> transforms.Transform:
  """Lifts functions of `{key: matrix}` to a Transform, for methods that see all weights at once.

  Weights are the floating arrays of rank 2 or more in what `at` let through; each is handed over
  as its matrix `[*batch, R, O]` (`layouts[key]` says which axes those were). State leaves of that
  shape are stored in the weight's own shape. Each function is offered the keywords listed, and
  receives those that it names. Scalars, vectors, integers, arrays with an axis of size 0 and what
  is called `bias`, `scale` or `offset`, whatever its rank, pass through untouched, as does a tree
  without weights. Weights and gradients that are not finite are errors, in `init` and, outside
  `jit`, in `update`; a compiled step cannot raise.

  Args:
    init: `(weights, *, layouts, stats, grads) -> ({key: latents}, {key: state})`, where stats
      and grads are dicts by key, or None.
    apply: `({key: latents}, {key: state}, *, layouts, count) -> {key: matrix or format}`.
    update: `({key: latents}, {key: state}, *, layouts, count, grads, refresh) -> {key: state}`.
    pack: like `apply`, offered `stored` too: {key: format an earlier stage packed to, or latents
      with such formats in them, or None}.
    spec: what is static.

  Returns:
    A Transform.

  Example:
    >>> halve = treewise(lambda ws: (ws, {key: () for key in ws}),
    ...                  lambda ws, state: {key: w / 2 for key, w in ws.items()})
    >>> params, state = halve.init({'kernel': jnp.ones((2, 2))})
    >>> float(halve.apply(params, state)['kernel'][0, 0])
    0.5
  """
  @explicit_axes.left_to_xla(_places_of_init)
  def t_init(params, *, stats=None, grads=None, axes=None, only=None, **extra):
    leaves, rebuild = names.named_leaves(params)
    # Factors belong to the weight that they stand for.
    owner = lambda leaf: names.name_of(leaf.key.split(':')[0])
    picked = [leaf for leaf in leaves if leaf.is_weight and (only is None or owner(leaf) in only)]
    arrays = {leaf.key: jnp.asarray(formats.densify(leaf.value)) for leaf in picked}
    _check_finite(arrays, 'values')
    layouts = {leaf.key: _layout(leaf, arrays[leaf.key], axes) for leaf in picked}
    matrices = {k: layouts[k].to_matrix(w) for k, w in arrays.items()}
    stats = None if stats is None else {leaf.key: stats.get(leaf.name) for leaf in picked}
    grads = _by_key(grads, layouts)
    _check_finite(grads or {}, 'gradients')
    latents, states = offered(init, layouts=layouts, stats=stats, grads=grads, **extra)(matrices)
    latents = {k: from_matrices(x, layouts[k]) for k, x in latents.items()}
    states = {k: _beside(arrays[k], from_matrices(x, layouts[k])) for k, x in states.items()}
    entries = tuple((k, Entry(layouts[k], kind(latents[k]))) for k in layouts)
    state = WeightsState(jnp.zeros([], jnp.int32), states, entries)
    return rebuild([latents.get(leaf.key, leaf.value) for leaf in leaves]), state

  def view(params, state):
    leaves, rebuild, entries, found = matched(params, state)
    layouts = {k: entry.layout for k, entry in entries.items()}
    holds = lambda x: any(map(formats.is_format, jax.tree.leaves(x, is_leaf=formats.is_format)))
    stored = {k: x if holds(x) else None for k, x in found.items()}
    latents = {k: to_matrices(formats.densify(x), layouts[k]) for k, x in found.items()}
    states = {k: to_matrices(state.weights[k], layouts[k]) for k in entries}
    return leaves, rebuild, layouts, stored, latents, states

  def mapped(function):
    @explicit_axes.left_to_xla(_places_of_weights)
    def run(params, state):
      leaves, rebuild, layouts, stored, latents, states = view(params, state)
      offer = offered(function, layouts=layouts, count=state.count, stored=stored)
      out = {k: x if formats.is_format(x) else layouts[k].from_matrix(x)
             for k, x in offer(latents, states).items()}
      return rebuild([out.get(leaf.key, leaf.value) for leaf in leaves])
    return run

  @explicit_axes.left_to_xla(_places_of_update)
  def updated(params, state, *, grads, refresh, **extra):
    *_, layouts, _, latents, states = view(params, state)
    found = _by_key(grads, layouts)
    _check_finite({k: x for k, x in latents.items() if hasattr(x, 'dtype')}, 'values')
    _check_finite(found or {}, 'gradients')
    new = offered(update, layouts=layouts, count=state.count, refresh=refresh,
                  grads=found, **extra)(latents, states)
    if new is states:   # what did not change stays the same object, as realign can see
      return state.weights
    return state.weights | {k: from_matrices(x, layouts[k]) for k, x in new.items()}

  def t_update(params, state, *, grads=None, refresh=None, **extra):
    if update is None:
      matched(params, state)
      weights = state.weights
    else:
      weights = updated(params, state, grads=grads, refresh=refresh, **extra)
    return dataclasses.replace(
        state, count=optax.safe_increment(state.count), weights=weights)

  return transforms.Transform(t_init, mapped(apply), t_update, mapped(pack or apply),
                              spec._replace(takes_formats=True))


def _beside(w, tree):
  """What has the shape of a weight that several devices share, divided like it.

  Random masks and fresh ones are made on one device; inside jit shardings are the caller's to say.
  """
  if isinstance(w, jax.core.Tracer) or len(w.sharding.device_set) < 2:
    return tree
  return _map_view(tree, w.shape, lambda x: jax.device_put(x, w.sharding))


def _places_of_init(out, params, **extra):
  """On a mesh of explicit axes: what a weight's latents and state consist of lies like the weight.

  The rule is that of `training.sharding`.
  """
  del extra
  latents, state = out
  specs = {leaf.key: _spec_of(leaf.value) for leaf in names.named_leaves(params)[0]
           if leaf.key in state.weights}
  return [*_specs_of_tree(latents, state, specs), jax.P(),
          *_specs_of_states(state.weights, state, specs)]


def _places_of_weights(out, params, state):
  return _specs_of_tree(out, state, _specs_of_weights(params, state))


def _places_of_update(out, params, state, **extra):
  """An array of the state stays where it was, as a loop's carry must."""
  del extra
  specs = _specs_of_weights(params, state)
  old = dict(jax.tree_util.tree_leaves_with_path(state.weights))
  new = jax.tree_util.tree_leaves_with_path(out)
  return [explicit_axes.spec_of(old[path]) if path in old and old[path].shape == x.shape else spec
          for (path, x), spec in zip(new, _specs_of_states(out, state, specs))]


def _spec_of(x):
  return x.spec if formats.is_format(x) else explicit_axes.spec_of(x)


def _specs_of_weights(params, state):
  """{key: where the weight lies}, as its latents and state tell."""
  *_, entries, found = matched(params, state)
  nodes = lambda key: jax.tree.leaves((found[key], state.weights[key]), is_leaf=formats.is_format)
  return {key: entry.layout.spec_of_whole([(x.shape, _spec_of(x)) for x in nodes(key)])
          for key, entry in entries.items()}


def _specs_of_tree(tree, state, specs):
  leaves, _ = names.named_leaves(tree, stop={*specs})
  return [spec for leaf in leaves for spec in _specs_of(leaf.key, leaf.value, state, specs)]


def _specs_of_states(states, state, specs):
  return jax.tree.leaves({k: _specs_of(k, x, state, specs) for k, x in states.items()})


def _specs_of(key, tree, state, specs):
  layout = dict(state.entries)[key].layout if key in specs else None
  return [jax.P() if layout is None else
          layout.spec_of_part(specs[key], x.shape, stored=formats.is_format(node))
          for node in jax.tree.leaves(tree, is_leaf=formats.is_format)
          for x in jax.tree.leaves(node)]


def _layout(leaf: names.Leaf, w, axes) -> roles.Layout:
  if axes is not None and leaf.name in axes:
    given = axes[leaf.name]
    if not given[0] or not given[1]:
      raise ValueError(f'{leaf.name}: a weight of shape {w.shape} with the roles {given} is no '
                       'matrix; expected reduction and output axes, or exclude it with at(...).')
    return roles.Layout(w.shape, w.dtype, given)
  # A factor's own axes are those of a matrix, whatever weight it is a factor of.
  known = roles.known_axes(leaf.name, w.shape, of_module=leaf.of_module)
  inside = names.name_of(leaf.key.split(':')[0]) != leaf.name
  return roles.Layout(w.shape, w.dtype, roles.axes.default_axes(w.ndim) if inside else known)


def _by_key(grads, layouts):
  if grads is None:
    return None
  leaves, _ = names.named_leaves(grads)
  found = {leaf.key: formats.densify(leaf.value) for leaf in leaves if leaf.key in layouts}
  for key, layout in layouts.items():
    shape = getattr(found.get(key), 'shape', None)
    if shape != layout.shape:
      raise ValueError(f'{names.name_of(key)}: the gradients do not match the weight: found '
                       f'{"none" if shape is None else f"shape {shape}"}, expected shape '
                       f'{layout.shape}.')
  return {key: layouts[key].to_matrix(g) for key, g in found.items()}


def _check_finite(arrays, word):
  for key, w in arrays.items():
    bad = w.size - jnp.isfinite(w).sum()   # inside a trace no number, even of a concrete array
    if not isinstance(bad, jax.core.Tracer) and bad:
      expected = 'a finite weight' if word == 'values' else 'finite gradients'
      raise ValueError(f'{names.name_of(key)}: {bad} of {w.size} {word} are NaN or infinite; '
                       f'expected {expected}.')


def matched(params, state):
  """Leaves of `params`, the function that rebuilds them, active entries, and what they found.

  Raises:
    ValueError: the params do not match the state.
  """
  if not isinstance(state, WeightsState):
    raise ValueError('The state does not match the transform: found '
                     f'{type(state).__name__}, expected WeightsState.')
  entries = state.active()
  leaves, rebuild = names.named_leaves(params, stop=set(entries))
  found = {leaf.key: leaf.value for leaf in leaves if leaf.key in entries}
  _check_match(found, entries, leaves)
  return leaves, rebuild, entries, found


def _check_match(found, entries, leaves):
  missing = [names.name_of(k) for k in entries if k not in found]
  if missing:
    there = [leaf.name for leaf in leaves if leaf.name not in missing]
    raise ValueError(f'The params do not match the state: {", ".join(missing)} not found; '
                     f'the tree has {", ".join(there) or "no leaves"}.')
  for key, entry in entries.items():
    if kind(found[key]) != entry.latents:
      raise ValueError(f'{names.name_of(key)}: the params do not match the state: found '
                       f'{kind(found[key])}, expected {entry.latents}.')


def kind(latents) -> str:
  """What stands in a weight's place, shapes included: what params are compared by."""
  if hasattr(latents, 'shape'):
    return f'an array of shape {tuple(latents.shape)}'
  if hasattr(latents, '_fields'):
    inside = ', '.join(f'{f}: {kind(getattr(latents, f))}' for f in latents._fields)
    return f'{type(latents).__name__}({inside})'
  return type(latents).__name__


def init_selected(transform, params, hit, extra):
  """`transform.init` on a tree with only the leaves whose key is in `hit`; others are put back."""
  def only(tree):
    leaves, rebuild = names.named_leaves(tree)
    return rebuild([leaf.value if leaf.key in hit else Absent() for leaf in leaves])

  grads = extra.get('grads')
  latents, state = transform.init(
      only(params), **(extra | {'grads': None if grads is None else only(grads)}))
  leaves, rebuild = names.named_leaves(params)
  made, _ = names.named_leaves(latents, stop=hit)
  made = {node.key: node.value for node in made}
  return rebuild([made[leaf.key] if leaf.key in hit else leaf.value for leaf in leaves]), state
