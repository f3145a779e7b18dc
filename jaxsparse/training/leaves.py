"""Leaves on their way to and from disk.

A leaf is stored in one of three places, which its entry in the manifest names: a Python number in
the manifest itself; a small array in the bundle, one array of bytes; any other as an Orbax array
called by its number. No name on disk comes from a path of the tree.
"""

import math
from typing import Any
from urllib import parse

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.training import fingerprints

BUNDLE = 'bundle'
_SMALL_BYTES = 1 << 20
_BUNDLE_BYTES = 1 << 26
_ALIGNMENT = 64
# Orbax 0.12 cannot write these; one element takes a byte in memory anyway.
_AS_BYTES = ('uint4', 'uint2')


def to_disk(flat: dict[str, Any],
            prints: dict[str, tuple[int, int]]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Entries of the manifest by name, and the arrays for Orbax."""
  entries, arrays, small, end = {}, {}, [], 0
  for name, x in flat.items():
    entry = {'shape': list(np.shape(x)), 'dtype': fingerprints.dtype_name(x),
             'print': list(prints[name])}
    entries[name] = entry
    if fingerprints.is_scalar(x):
      # Text: JSON has no exact floats, and no reader should narrow an int.
      entry['value'] = x.hex() if isinstance(x, float) else repr(int(x))
      continue
    if fingerprints.is_key(x):
      entry['impl'] = str(jax.random.key_impl(x))
      x = jax.random.key_data(x)
    size = x.size * x.dtype.itemsize
    if _whole(x) and size <= min(_SMALL_BYTES, _BUNDLE_BYTES - end):
      entry['offset'] = end
      end += size + -size % _ALIGNMENT
      small.append(x)
    else:
      entry['array'] = f'array-{len(arrays)}'
      x = np.asarray(x) if _host_local(x) else x
      arrays[entry['array']] = x.astype('uint8') if str(x.dtype) in _AS_BYTES else x
  # A byte more, for Orbax refuses an empty tree.
  arrays[BUNDLE] = bundle = np.zeros(end + 1, np.uint8)
  offsets = [entry['offset'] for entry in entries.values() if 'offset' in entry]
  for x, offset in zip(jax.device_get(small), offsets):   # all transfers in flight at once
    piece = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    bundle[offset:offset + piece.size] = piece
  return entries, arrays


def local_bytes(arrays: dict[str, Any], rank: int) -> int:
  """Bytes of `arrays` that this process writes."""
  total = 0
  for x in arrays.values():
    if isinstance(x, jax.Array):
      total += sum(s.data.nbytes for s in x.addressable_shards if s.replica_id == 0)
    elif rank == 0:
      total += x.nbytes
  return total


def restore_args(about: dict[str, Any], flat: dict[str, Any]) -> ocp.args.PyTreeRestore:
  """What Orbax is asked for: the dtypes as written, on the shardings of `flat`."""
  wanted = {BUNDLE: ocp.RestoreArgs(restore_type=np.ndarray)}
  for name, entry in about['leaves'].items():
    if 'array' not in entry:
      continue
    sharding = _sharding(flat[name])
    if sharding is None:
      wanted[entry['array']] = ocp.RestoreArgs(restore_type=np.ndarray)
    else:
      shape = _data(flat[name]).shape
      wanted[entry['array']] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape)
  return ocp.args.PyTreeRestore(item=dict.fromkeys(wanted, 0), restore_args=wanted)


def from_disk(entries: dict[str, Any], arrays: dict[str, Any],
              flat: dict[str, Any]) -> dict[str, Any]:
  """Leaves in the order, types and shardings of `flat`."""
  out = {}
  for name, x in flat.items():
    entry = entries[name]
    if 'value' in entry:
      value = entry['value']
      out[name] = float.fromhex(value) if isinstance(x, float) else type(x)(int(value))
      continue
    data = _data(x)
    if 'offset' in entry:
      dtype = np.dtype(data.dtype)
      size = math.prod(data.shape) * dtype.itemsize
      piece = arrays[BUNDLE][entry['offset']:entry['offset'] + size]
      value = np.array(piece).view(dtype).reshape(data.shape)
    else:
      value = arrays[entry['array']]
      value = value.astype(data.dtype) if str(data.dtype) in _AS_BYTES else value
    out[name] = _placed(value, x, entry)
  return out


def differences(entries: dict[str, Any], flat: dict[str, Any]) -> list[str]:
  """One line for each path whose shape or dtype is not the expected one."""
  found = {name: [e['shape'], e['dtype']] for name, e in entries.items()}
  expected = {name: [list(np.shape(x)), fingerprints.dtype_name(x)] for name, x in flat.items()}
  shown = lambda table, name: '{1}{0}'.format(*table[name]) if name in table else 'nothing'
  return [f'  {parse.unquote(name)}: found {shown(found, name)}, expected {shown(expected, name)}'
          for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


def _host_local(x):
  return jax.process_count() > 1 and isinstance(x, jax.Array) and x.is_fully_addressable


def _whole(x):
  """Whether this process can read all of a leaf, and so can every other."""
  return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def _data(x):
  """The abstract array that is stored for a leaf."""
  if not hasattr(x, 'dtype'):
    return np.asarray(x)
  return jax.eval_shape(jax.random.key_data, x) if fingerprints.is_key(x) else x


def _sharding(x):
  """Where a leaf is wanted; None for NumPy arrays and for wherever JAX puts it."""
  if isinstance(x, jax.Array):
    x = jax.random.key_data(x) if fingerprints.is_key(x) else x
    return x.sharding if x.committed else None
  return getattr(x, 'sharding', None)


def _placed(value, x, entry):
  if isinstance(x, np.ndarray | np.generic):
    value = np.asarray(value)
    return value if isinstance(x, np.ndarray) else value[()]
  sharding = _sharding(x)
  if not isinstance(value, jax.Array):
    if sharding is None:
      value = jnp.asarray(value)
    else:
      value = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
  return jax.random.wrap_key_data(value, impl=entry['impl']) if 'impl' in entry else value
