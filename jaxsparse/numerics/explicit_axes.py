"""Meshes of explicit axes, as `jax.make_mesh` makes them: their axes are left to XLA inside.

With explicit axes the sharding of an array is part of its type, and jax refuses an operation that
does not say where its result lies, such as a reshape of a sharded axis. What this library computes
is defined without a mesh, so it runs with the axes as XLA's (`AxisType.Auto`), and only its results
get shardings as types again.
"""

import functools
import math
from typing import Any, Callable

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec


def left_to_xla(place: Callable) -> Callable:
  """Decorates a function: the explicit axes of its arguments' mesh are XLA's while it runs.

  Arrays change their types, not their places: of a concrete one each device keeps the part that it
  has, and nothing is copied. What the function returns as it was given is the caller's own object.
  Without explicit axes among the arguments the function is called as it is.

  Args:
    place: `(out, *args, **kwargs) -> specs`: for each leaf of `out`, in order, the PartitionSpec
      that it gets; axes of the mesh that do not divide the leaf's, or come twice, are left out.
      Axes of a concrete array that it leaves open stay where XLA put them.

  Returns:
    The decorator.

  Example:
    >>> import jax.numpy as jnp
    >>> mesh = jax.make_mesh((1,), ('x',))
    >>> w = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, PartitionSpec('x', None)))
    >>> negative = left_to_xla(lambda out, w: [spec_of(w)])(lambda w: -w.reshape(-1).reshape(4, 2))
    >>> jax.typeof(negative(w))
    ShapedArray(float32[4@x,2])
  """
  def decorate(fn):
    @functools.wraps(fn)
    def call(*args, **kwargs):
      given, structure = jax.tree.flatten((args, kwargs))
      mesh = mesh_of(given)
      if mesh is None:
        return fn(*args, **kwargs)
      with jax.sharding.use_abstract_mesh(_as_auto(mesh)):
        taken = [_taken(x) for x in given]
        args_taken, kwargs_taken = structure.unflatten(taken)
        out = fn(*args_taken, **kwargs_taken)
      leaves, out_structure = jax.tree.flatten(out)
      own = {id(t): x for t, x in zip(taken, given)}
      devices = next((x.sharding.mesh for x in given if mesh_of(x) is not None
                      and not isinstance(x, jax.core.Tracer)), None)
      return out_structure.unflatten([
          own[id(x)] if id(x) in own else _given_back(x, mesh, devices, spec)
          for x, spec in zip(leaves, place(out, *args, **kwargs), strict=True)])
    return call
  return decorate


def closed_over(tree: Any) -> Any:
  """What a function that runs with the axes as XLA's takes from elsewhere than its arguments.

  Its arrays get the types that those of the arguments have there; anywhere else nothing happens.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or AxisType.Explicit in mesh.axis_types:
    return tree
  return jax.tree.map(_taken, tree)


def spec_of(x: Any) -> PartitionSpec:
  """Where an array lies as its type says it: the axes of the mesh that are explicit.

  Example:
    >>> import jax.numpy as jnp
    >>> spec_of(jnp.ones((4, 2)))
    P(None, None)
  """
  return jax.typeof(x).sharding.spec


def mesh_of(tree: Any) -> Any:
  """The abstract mesh of the first array whose axes are explicit, some or all; None without one."""
  for x in jax.tree.leaves(tree):
    mesh = jax.typeof(x).sharding.mesh if isinstance(x, jax.Array) else None
    if mesh is not None and AxisType.Explicit in mesh.axis_types:
      return mesh
  return None


def fitting(spec: PartitionSpec, shape: tuple[int, ...], mesh: Any) -> PartitionSpec:
  """`spec` of as many axes as `shape` has, each axis of the mesh once and where it divides.

  Example:
    >>> mesh = jax.sharding.AbstractMesh((2,), ('x',))
    >>> fitting(PartitionSpec('x', 'x'), (3, 4, 1), mesh)
    P(None, 'x', None)
  """
  used, fitted = set(), []
  for n, part in zip(shape, (*spec, *[None] * (len(shape) - len(spec)))):
    parts = part if isinstance(part, tuple) else () if part is None else (part,)
    fits = n % math.prod(mesh.shape[p] for p in parts) == 0 and not used.intersection(parts)
    used.update(parts if fits else ())
    fitted.append(part if fits and parts else None)
  return PartitionSpec(*fitted)


def _as_auto(mesh):
  return mesh.update_axis_types({name: AxisType.Auto for name, kind in zip(
      mesh.axis_names, mesh.axis_types) if kind == AxisType.Explicit})


def _like(mesh, kinds) -> jax.sharding.Mesh:
  """A mesh of the same devices, with axes of other kinds."""
  return jax.sharding.Mesh(mesh.devices, mesh.axis_names, axis_types=kinds)


def _taken(x):
  mesh = mesh_of(x)
  if mesh is None:
    return x
  auto = _as_auto(mesh)
  if isinstance(x, jax.core.Tracer):
    return jax.sharding.reshard(x, NamedSharding(auto, PartitionSpec()))
  return jax.device_put(x, NamedSharding(_like(x.sharding.mesh, auto.axis_types), x.sharding.spec))


def _given_back(x, mesh, devices, spec):
  if not isinstance(x, jax.Array) or jax.typeof(x).sharding.mesh != _as_auto(mesh):
    return x
  spec = fitting(spec, x.shape, mesh)
  if isinstance(x, jax.core.Tracer):
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))
  if isinstance(x.sharding, NamedSharding):   # a constant is on one device
    devices = x.sharding.mesh
    found = (*x.sharding.spec, *[None] * (x.ndim - len(x.sharding.spec)))
    if all(wanted in (None, there) for wanted, there in zip(spec, found)):
      spec = x.sharding.spec
  return jax.device_put(x, NamedSharding(_like(devices, mesh.axis_types), spec))
