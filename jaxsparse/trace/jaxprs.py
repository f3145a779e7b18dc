"""Tracing a function and reading its jaxpr: the one place that touches `jax.extend`.

What differs between the versions of jax this library supports is settled here.
"""

import contextlib
from typing import Any, Callable, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.numerics import explicit_axes


class Program(NamedTuple):
  """A traced function and the values it was called with.

  Attributes:
    jaxpr: of the flat function.
    consts: one value for each of `jaxpr.constvars`.
    names: for each of `jaxpr.invars` the weight's name, or None for an input.
    values: for each of `jaxpr.invars` an array or a format.
    out_tree: structure of the function's output.
  """

  jaxpr: jex.Jaxpr
  consts: list
  names: tuple[str | None, ...]
  values: tuple
  out_tree: Any


class Split(NamedTuple):
  """The static half of a tree of which the arrays were taken out; hashable if its leaves are."""

  treedef: Any
  static: tuple

  def merge(self, arrays) -> Any:
    """The tree with `arrays` put back."""
    arrays = iter(arrays)
    leaves = [next(arrays) if leaf is _ARRAY else leaf for leaf in self.static]
    return self.treedef.unflatten(leaves)


class _Array:
  """Marks where an array was."""


_ARRAY = _Array()


def is_array(x: Any) -> bool:
  """Whether `x` is traced; every other leaf (None, bool, str, scalar, callable) is static."""
  kinds = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
  return isinstance(x, kinds) and getattr(x.dtype, 'kind', 'f') not in 'OUSM'


def split(tree: Any) -> tuple[list, Split]:
  """The arrays of a tree, and the rest of it."""
  leaves, treedef = jax.tree.flatten(tree)
  arrays = [x for x in leaves if is_array(x)]
  return arrays, Split(treedef, tuple(_ARRAY if is_array(x) else x for x in leaves))


def trace(fn: Callable, params: Any, args: tuple, kwargs: dict) -> Program:
  """Traces `fn(params, *args, **kwargs)`; formats in `params` appear to it as dense arrays."""
  leaves, rebuild = names.named_leaves(params)
  places = [i for i, leaf in enumerate(leaves)
            if formats.is_format(leaf.value) or is_array(leaf.value)]
  inputs, static = split((args, kwargs))

  def flat(*values):
    merged = [leaf.value for leaf in leaves]
    for place, value in zip(places, values):
      merged[place] = value
    args, kwargs = static.merge(values[len(places):])
    return fn(rebuild(merged), *args, **kwargs)

  weights = [_held(leaves[i]) for i in places]
  seen = [_as_dense(w) if formats.is_format(w) else w for w in weights]
  closed, out = jax.make_jaxpr(flat, return_shape=True)(*seen, *inputs)
  tracked = (*(leaves[i].name for i in places), *(None for _ in inputs))
  return Program(closed.jaxpr, closed.consts, tracked, (*weights, *inputs),
                 jax.tree.structure(out))


def _held(leaf):
  """The value of a leaf; of a stored stack that `vmap` or `scan` sliced, as one of its matrices."""
  if not formats.is_format(leaf.value):
    return leaf.value
  try:
    return formats.unstacked(leaf.value)
  except ValueError as error:
    raise ValueError(f'{leaf.name}: {error}') from error


def _as_dense(w):
  mesh = explicit_axes.mesh_of(w)
  place = mesh and jax.NamedSharding(mesh, explicit_axes.fitting(w.spec, w.shape, mesh))
  return jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=place)


def read(env: dict, atom: Any) -> Any:
  """The value of a variable, or of a literal."""
  return atom.val if isinstance(atom, jex.Literal) else env[atom]


def is_literal(atom: Any) -> bool:
  """Whether an operand is a literal rather than a variable."""
  return isinstance(atom, jex.Literal)


def bind(primitive: Any, params: dict, args) -> list:
  """Applies a primitive to arrays.

  `get_bind_params` returned `(subfuns, params)` before jax 0.7 and returns a dict since.
  """
  found = primitive.get_bind_params(params)
  subfuns, params = found if isinstance(found, tuple) else ((), found)
  outs = primitive.bind(*subfuns, *args, **params)
  return list(outs) if primitive.multiple_results else [outs]


def opened(jaxpr: Any) -> tuple[Any, list]:
  """`(jaxpr, consts)` of a jaxpr that may be closed or open."""
  return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, 'consts') else (jaxpr, [])


def called(eqn: Any) -> Any:
  """The jaxpr that an equation calls once: that of jit, remat or a custom derivative."""
  for key in ('jaxpr', 'call_jaxpr', 'fun_jaxpr'):
    if key in eqn.params:
      return eqn.params[key]
  return None


def scan_counts(params: dict) -> tuple[int, int]:
  """`(constants, carried values)` of a scan; jax 0.12 keeps trees in place of counts."""
  if 'num_consts' in params:
    return params['num_consts'], params['num_carry']
  consts, carry, _ = params['ft_in'].unpack()
  return len(list(consts)), len(list(carry))


def jaxprs_of(eqn: Any) -> list:
  """Every jaxpr among an equation's parameters."""
  found = []
  for value in eqn.params.values():
    many = value if isinstance(value, (tuple, list)) else (value,)
    found += [v for v in many if isinstance(v, (jex.Jaxpr, jex.ClosedJaxpr))]
  return found


@contextlib.contextmanager
def context(eqn: Any):
  """The name scopes and configuration under which an equation was traced."""
  stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
  traceback = eqn.source_info.traceback
  with source_info_util.user_context(traceback, name_stack=stack), eqn.ctx.manager:
    yield
