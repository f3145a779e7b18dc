"""Specs of latents, state and optimizer state from the specs of the weights.

Sharding inferred by `jit` is not enough: random masks and factors come out replicated. The rule:
a leaf of the weight's shape has its spec; otherwise axes are matched with those of the weight's
matrix view, one of the same size has that axis' spec, size 1 or a new axis has none.
"""

import math
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxsparse.core import masks
from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.training import step as steps


def train_shardings(transform: transforms.Transform, tx: optax.GradientTransformation, params: Any,
                    specs: Any, mesh: jax.sharding.Mesh, **extra) -> steps.TrainState:
  """Where everything a training step carries belongs: latents, state, moments; allocates nothing.

  Args:
    transform: any transform.
    tx: the optimizer of the latents.
    params: arrays, `jax.ShapeDtypeStruct`s, or a traceable function `() -> params`.
    specs: a tree like `params` of `PartitionSpec`s.
    mesh: the devices; its axes are those the specs name.
    **extra: what `transform.init` takes besides.

  Returns:
    A `TrainState` of `NamedSharding`s, for `TrainState.create` and `train_step`; its count, which
    lives on the host, is None.

  Raises:
    ValueError: a spec has more axes than its weight, or names an axis that the mesh lacks or that
      does not divide the weight's.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    >>> params, specs = {'kernel': jnp.ones((8, 4))}, {'kernel': PartitionSpec('data')}
    >>> places = train_shardings(jsp.nm(2, 4), optax.adam(0.1), params, specs, mesh)
    >>> places.state.weights['kernel'].mask.spec == places.opt_state[0].mu['kernel'].spec
    True
  """
  abstract = jax.eval_shape(params if steps.is_recipe(params) else lambda: params)
  _check(abstract, specs, mesh)
  latent_specs, state_specs = sharding_specs(transform, abstract, specs, mesh=mesh, **extra)
  latents, _ = jax.eval_shape(lambda p: transform.init(p, **extra), abstract)
  tree = latent_specs, state_specs, optimizer_specs(tx, latents, latent_specs)
  place = lambda spec: NamedSharding(mesh, spec)
  return steps.TrainState(*jax.tree.map(place, tree, is_leaf=_is_spec), None)


def sharding_specs(transform: transforms.Transform, params: Any, specs: Any, *,
                   mesh: jax.sharding.Mesh | None = None, **extra) -> tuple[Any, Any]:
  """Specs of `transform.init(params)`'s outputs; allocates nothing.

  Args:
    transform: any transform.
    params: arrays or `jax.ShapeDtypeStruct`s.
    specs: a tree like `params` of `PartitionSpec`s.
    mesh: the devices. With it packed masks are divided along their packed axis too where each
      device's part is whole bytes; without, along the others only.
    **extra: what `transform.init` takes besides.

  Returns:
    `(latent specs, state specs)`, trees of `PartitionSpec` with the structures of what
    `transform.init` returns.

  Raises:
    ValueError: a spec has more axes than its weight.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> specs = {'kernel': PartitionSpec('data', 'model')}
    >>> _, state = sharding_specs(jsp.nm(2, 4), {'kernel': jnp.ones((8, 4))}, specs)
    >>> state.weights['kernel'].mask == PartitionSpec('data', 'model')
    True
  """
  abstract = jax.eval_shape(lambda p: p, params)
  latents, state = jax.eval_shape(lambda p: transform.init(p, **extra), abstract)
  leaves, _ = names.named_leaves(abstract)
  spec_leaves = jax.tree.leaves(specs, is_leaf=_is_spec)
  if len(spec_leaves) != len(leaves):
    raise ValueError(f'specs has {len(spec_leaves)} leaves and params {len(leaves)}; expected one '
                     'PartitionSpec for each.')
  owner = {}
  for leaf, spec in zip(leaves, spec_leaves):
    if len(spec) > len(leaf.value.shape):
      raise ValueError(f'{leaf.name}: {spec} has more axes than the shape {leaf.value.shape}.')
    owner[leaf.key] = (leaf.value.shape, spec)
  layouts = _layouts(state)

  latent_leaves, rebuild = names.named_leaves(latents)
  latent_specs = rebuild([_derive(leaf.value, *_owner(leaf.key, owner, layouts))
                          for leaf in latent_leaves])

  def of_state(node):
    if not isinstance(node, weights.WeightsState):
      return jax.tree.map(lambda _: PartitionSpec(), node)
    derived = {}
    for key, value in node.weights.items():
      place = _owner(key, owner, layouts)
      derived[key] = jax.tree.map(
          lambda x, place=place: _derive_state(x, mesh, *place), value, is_leaf=masks.is_packed)
    return jax.tree.unflatten(jax.tree.structure(node), [
        PartitionSpec(), *jax.tree.leaves(derived, is_leaf=_is_spec)])

  is_state = lambda x: isinstance(x, weights.WeightsState)
  return latent_specs, jax.tree.map(of_state, state, is_leaf=is_state)


def optimizer_specs(tx: optax.GradientTransformation, params: Any, specs: Any) -> Any:
  """Specs of `tx.init(params)`: moments like their parameters, everything else replicated.

  Of moments in fewer bits (`quantized_state`) the axes that are as long as the parameter's.

  Args:
    tx: the optimizer.
    params: latent parameters, or their abstract values.
    specs: a tree like `params` of `PartitionSpec`s, as `sharding_specs` returns.

  Example:
    >>> import jax.numpy as jnp
    >>> specs = optimizer_specs(optax.adam(0.1), {'w': jnp.ones(2)}, {'w': PartitionSpec('data')})
    >>> specs[0].mu['w'] == PartitionSpec('data')
    True
  """
  abstract = jax.eval_shape(tx.init, params)
  # `optax.partition` and `masked` hold a placeholder for what another optimizer owns.
  masked = lambda x: isinstance(x, optax.MaskedNode)

  def same(x, p, s):
    if masked(x) or x.shape == p.shape:
      return x if masked(x) else s
    if x.ndim != p.ndim:
      return PartitionSpec()
    # Packed codes and scales: axes that were not shortened are divided as before.
    return PartitionSpec(*(s[a] if a < len(s) and x.shape[a] == p.shape[a] else None
                           for a in range(x.ndim)))

  return optax.tree_map_params(tx, same, abstract, jax.eval_shape(lambda p: p, params), specs,
                               transform_non_params=lambda _: PartitionSpec(), is_leaf=masked)


def _is_spec(x) -> bool:
  return isinstance(x, PartitionSpec)


def _check(params, specs, mesh):
  """What jax would say without the weight's name, in the middle of a compilation."""
  leaves, _ = names.named_leaves(params)
  for leaf, spec in zip(leaves, jax.tree.leaves(specs, is_leaf=_is_spec)):
    for axis, given in zip(range(len(leaf.value.shape)), spec):
      parts = given if isinstance(given, tuple) else () if given is None else (given,)
      missing = [part for part in parts if part not in mesh.shape]
      if missing:
        raise ValueError(f'{leaf.name}: {spec} names {missing}, the mesh has '
                         f'{list(mesh.axis_names)}.')
      count = math.prod(mesh.shape[part] for part in parts)
      if leaf.value.shape[axis] % count:
        raise ValueError(f'{leaf.name}: axis {axis} of {leaf.value.shape} is not divisible by '
                         f'{count} ({"x".join(parts)} of the mesh).')


def _layouts(state) -> dict[str, Any]:
  is_state = lambda x: isinstance(x, weights.WeightsState)
  return {key: entry.layout for node in jax.tree.leaves(state, is_leaf=is_state)
          if is_state(node) for key, entry in node.entries}


def _owner(key, owner, layouts):
  """Shape, spec and layout of the weight that a (perhaps nested) key belongs to."""
  root = key
  while root not in owner and ':' in root:
    root = root.rpartition(':')[0]
  shape, spec = owner[root]
  return shape, spec, layouts.get(root)


def _derive_state(leaf, mesh, shape, spec, layout):
  if isinstance(leaf, masks.BlockMask):
    return PartitionSpec()   # a few integers, which every device needs
  if not masks.is_packed(leaf):
    return _derive(leaf, shape, spec, layout)
  place = _derive(jax.ShapeDtypeStruct(leaf.shape, bool), shape, spec, layout)
  at = len(leaf.shape) + leaf.axis
  given = place[at] if len(place) else None
  parts = given if isinstance(given, tuple) else () if given is None else (given,)
  whole = mesh is not None and leaf.size % (8 * math.prod(mesh.shape[p] for p in parts)) == 0
  return place if whole or given is None else PartitionSpec(*place[:at], None, *place[at + 1:])


def _derive(leaf, shape, spec, layout) -> PartitionSpec:
  if leaf.shape == shape:
    return PartitionSpec(*spec, *[None] * (len(shape) - len(spec)))
  if layout is None or layout.shape != shape or len(leaf.shape) == 0:
    return PartitionSpec()
  return layout.spec_of_part(spec, leaf.shape)
