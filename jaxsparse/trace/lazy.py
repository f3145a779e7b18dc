"""Layout operations that a format passes through as it is stored."""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from jaxsparse.trace import origins
from jaxsparse.trace import tracked


def apply(eqn: Any, values: list) -> list | None:
  """The results of a layout operation on a format; None where it has to be densified.

  Transposes, inserted axes and casts change the origin alone: the product that follows reads them
  off it. A cast to a wider dtype changes no value; a narrower one is the format's own `astype`.
  """
  name = eqn.primitive.name
  if name == 'optimization_barrier':
    return _barrier(eqn, values)
  if not tracked.is_packed(values[0]):
    return None
  rule = _RULES.get(name, _kept if name in origins.PRESERVING else None)
  source = values[0].origin
  if name == 'unstack':
    return _elements(eqn, values[0])
  value = rule and rule(eqn, values[0].value, source, values)
  return value and [tracked.Tracked(value, origins.follow(eqn, [source])[0])]


def _kept(eqn, packed, source, values):
  del eqn, source, values
  return packed


def _cast(eqn, packed, source, values):
  del source, values
  dtype = jnp.dtype(eqn.params['new_dtype'])
  if not jnp.issubdtype(dtype, jnp.floating):
    return None
  return packed.astype(dtype) if jnp.finfo(dtype).bits < jnp.finfo(packed.dtype).bits else packed


def _stopped(eqn, packed, source, values):
  del eqn, source, values
  return jax.tree.map(jax.lax.stop_gradient, packed)


def _units(eqn, packed, source, values):
  # Axes of size one that are no axes of the weight come and go freely.
  del values
  same = eqn.invars[0].aval.size == eqn.outvars[0].aval.size
  return packed if same and origins.follow(eqn, [source])[0].kept == source.kept else None


def _element(eqn, packed, source, values):
  # One element of a stack: a slice of length one along the leading batch axis.
  old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  if not _leads(packed, source) or new != (1, *old[1:]):
    return None
  start = values[1] if eqn.primitive.name == 'dynamic_slice' else eqn.params['start_indices'][0]
  return _pick(packed, start)


def _elements(eqn, value):
  if eqn.params['axis'] != 0 or not _leads(value.value, value.origin):
    return None
  return [tracked.Tracked(_pick(value.value, n), source)
          for n, source in enumerate(origins.follow(eqn, [value.origin]))]


def _leads(packed, source):
  return source.positions and source.positions[0] == 0 and 0 in packed.layout.batch


def _pick(packed, start):
  pick = lambda a: jax.lax.dynamic_index_in_dim(a, start, 0, keepdims=False)
  return jax.tree.map(pick, packed).drop_leading()


def _barrier(eqn, values):
  # Only arrays go through the barrier; a format has none of its own to order.
  arrays = [i for i, v in enumerate(values) if not tracked.is_packed(v)]
  if len(arrays) == len(values):
    return None
  outs = list(values)
  passed = jax.lax.optimization_barrier([tracked.plain(values[i], eqn.invars[i]) for i in arrays])
  for i, out in zip(arrays, passed):
    source = tracked.source_of(values[i])
    outs[i] = tracked.Tracked(out, source) if source else out
  return outs


_RULES: dict[str, Callable | None] = {
    'convert_element_type': _cast, 'transpose': _kept, 'stop_gradient': _stopped,
    'squeeze': _units, 'broadcast_in_dim': _units, 'slice': _element, 'dynamic_slice': _element,
    'reduce_precision': None}
