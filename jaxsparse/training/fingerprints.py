"""Fingerprints: two 32-bit integers that say whether a leaf still holds the same bits.

Let `w[i]` be the bit pattern of element `i` (row-major, in 32-bit words) and `h` a hash. The
fingerprint is `(sum w[i] * (h(i) | 1), sum h(w[i] ^ h(i + c)))` modulo 2^32. Integer sums have no
order, so it does not depend on mesh, sharding or number of processes; an odd factor makes the first
sum differ for any one flipped bit, and the hash makes the second differ for exchanges. It guards
against accidents, not against somebody who wants to forge a checkpoint.
"""

import functools
import hashlib
import math
from typing import Any
from urllib import parse

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = 0x9E3779B9
_SMALL_BYTES = 1 << 20
_MOST_STACKED = 64


def fingerprint(tree: Any) -> dict[str, tuple[int, int]]:
  """Fingerprints of all leaves, in one compiled program.

  Args:
    tree: arrays of any dtype and sharding (not fully addressable ones too: then every process
      calls this), NumPy arrays, typed keys, Python bools, ints and floats.

  Returns:
    `{name: (uint32, uint32)}`; the names are paths with everything but letters, digits, `_`, `-`
    and `~` percent-escaped, so no two paths share one.

  Raises:
    TypeError: a leaf is none of those.

  Example:
    >>> a, b = (fingerprint({'w': jnp.array([1.0, x])}) for x in (2.0, 2.0000002))
    >>> list(a), a == b
    (['%5B%27w%27%5D'], False)
  """
  return measure(flatten(tree))[0]


def digest(tree: Any) -> str:
  """One hexadecimal SHA-256 of the paths, shapes, dtypes and fingerprints of a tree.

  Args:
    tree: as for `fingerprint`.

  Example:
    >>> digest({'w': jnp.zeros(3)}) == digest({'w': jnp.zeros(3)})
    True
    >>> digest({'w': jnp.zeros(3)}) == digest({'w': jnp.zeros((3, 1))})
    False
  """
  flat = flatten(tree)
  return combine(flat, measure(flat)[0])


def combine(flat: dict[str, Any], prints: dict[str, tuple[int, int]]) -> str:
  """The digest of leaves whose fingerprints are known."""
  lines = [f'{name} {list(np.shape(x))} {dtype_name(x)} {prints[name]}' for name, x in
           sorted(flat.items())]
  return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def flatten(tree: Any) -> dict[str, Any]:
  """Leaves by escaped path, in the order of the tree."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  named = {parse.quote(jax.tree_util.keystr(path), safe='').replace('.', '%2E'): x
           for path, x in flat}
  if len(named) != len(flat):
    raise ValueError('Two leaves of the tree have the same path; a node type of its own must be '
                     'registered with a distinct key for each child.')
  return named


def is_key(x: Any) -> bool:
  """Whether a leaf is an array (or abstract array) of typed keys."""
  return hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_scalar(x: Any) -> bool:
  """Whether a leaf is a plain Python number."""
  return isinstance(x, bool | int | float) and not hasattr(x, 'dtype')


def dtype_name(x: Any) -> str:
  """The dtype of a leaf as text; of a Python number its type."""
  return str(x.dtype) if hasattr(x, 'dtype') else f'python {type(x).__name__}'


def measure(flat: dict[str, Any]) -> tuple[dict[str, tuple[int, int]], list[str]]:
  """Fingerprints of named leaves, and the names of those with a NaN or an infinity."""
  rows, on_devices = {}, {}
  for name, x in flat.items():
    if is_scalar(x):
      rows[name] = _of_scalar(x)
    elif isinstance(x, jax.Array):
      x = jax.random.key_data(x) if is_key(x) else x
      # A program runs on one set of devices, and leaves may live on several.
      devices = tuple(sorted(d.id for d in x.sharding.device_set))
      on_devices.setdefault(devices, {})[name] = x
    elif isinstance(x, np.ndarray | np.generic):
      rows[name] = _of_host(np.asarray(x))
    else:
      raise TypeError(f'{parse.unquote(name)}: expected an array or a Python number, found a '
                      f'{type(x).__name__}; put anything else in `extra`.')
  for group in on_devices.values():
    # All leaves in one program: hundreds of small ones in flight, each with a collective, starve
    # each other on forced host devices until XLA aborts.
    arrays = list(group.values())
    stacks, order = _alike(arrays)
    # Ready on every device, not on the one that is read: a program started beside the collectives
    # of this one would hang processes on CPUs.
    table = np.asarray(jax.block_until_ready(_program(_replicated(arrays))(stacks)))
    names = list(group)
    rows.update((names[i], row) for i, row in zip(order, table.tolist()))
  prints = {name: (rows[name][0], rows[name][1]) for name in flat}
  return prints, [name for name in flat if rows[name][2]]


def _alike(arrays):
  """Lists of small arrays of one shape, dtype and sharding; and which array each row stands for.

  A stack of fifty costs XLA what one costs, to compile and to run.
  """
  groups = {}
  for i, x in enumerate(arrays):
    kind = (x.shape, x.dtype, x.sharding) if x.nbytes <= _SMALL_BYTES else i
    groups.setdefault(kind, []).append(i)
  parts = [group[k:k + _MOST_STACKED] for group in groups.values()
           for k in range(0, len(group), _MOST_STACKED)]
  return [[arrays[i] for i in part] for part in parts], [i for part in parts for i in part]


def _replicated(arrays):
  for x in arrays:
    if isinstance(x.sharding, jax.sharding.NamedSharding):
      return jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())
  return None


@functools.lru_cache(maxsize=16)
def _program(sharding):
  def table(stacks):
    return jnp.concatenate([_of_arrays(jnp.stack(arrays)) for arrays in stacks])
  return jax.jit(table, out_shardings=sharding)


def _of_arrays(x):
  """Rows of two sums and whether anything is not finite, of arrays along a new first axis."""
  w = _words(x)
  index, stride = jnp.zeros(w.shape, jnp.uint32), 1
  for axis in reversed(range(1, w.ndim)):
    place = jax.lax.broadcasted_iota(jnp.uint32, w.shape, axis)
    index = index + place * jnp.uint32(stride & 0xFFFFFFFF)
    stride *= w.shape[axis]
  first = w * (_mix(index) | jnp.uint32(1))
  second = _mix(w ^ _mix(index + jnp.uint32(_GOLDEN)))
  broken = jnp.zeros(w.shape, jnp.uint32)
  if jnp.issubdtype(x.dtype, jnp.inexact):
    broken = (~jnp.isfinite(x)).astype(jnp.uint32)
    broken = jnp.broadcast_to(jnp.expand_dims(broken, range(x.ndim, w.ndim)), w.shape)
  zero = jnp.uint32(0)
  # One reduction for all three: the state is read once.
  sums = jax.lax.reduce((first, second, broken), (zero, zero, zero),
                        lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] | b[2]),
                        tuple(range(1, w.ndim)))
  return jnp.stack(sums, axis=-1)


def _words(x):
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    return _words(jnp.stack([x.real, x.imag], axis=-1))
  if x.dtype == jnp.bool_:
    return x.astype(jnp.uint32)
  bits = _bits(x.dtype)
  if bits == 64:   # a new last axis: low word, high word
    return jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jax.lax.bitcast_convert_type(x, f'uint{bits}').astype(jnp.uint32)


def _bits(dtype):
  info = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
  return info(dtype).bits


def _mix(i):
  """The finalizer of MurmurHash3; works on NumPy and on JAX arrays."""
  i = i ^ (i >> 16)
  i = i * np.uint32(0x85EBCA6B)
  i = i ^ (i >> 13)
  i = i * np.uint32(0xC2B2AE35)
  return i ^ (i >> 16)


def _of_host(x: np.ndarray) -> tuple[int, int, int]:
  finite = not jnp.issubdtype(x.dtype, jnp.inexact) or bool(np.isfinite(x).all())
  width = min(x.dtype.itemsize, 4)
  w = np.ascontiguousarray(x).reshape(-1).view(f'uint{8 * width}').astype(np.uint32)
  if x.dtype != np.bool_ and not jnp.issubdtype(x.dtype, jnp.complexfloating):
    # Elements below a byte are kept one a byte, the bits above them undefined.
    w &= np.uint32((1 << min(_bits(x.dtype), 32)) - 1)
  index = np.arange(w.size, dtype=np.uint64).astype(np.uint32)
  first = np.sum(w * (_mix(index) | np.uint32(1)), dtype=np.uint32)
  second = np.sum(_mix(w ^ _mix(index + np.uint32(_GOLDEN))), dtype=np.uint32)
  return int(first), int(second), int(not finite)


def _of_scalar(x) -> tuple[int, int, int]:
  # repr is exact for all three types, and an int has no width.
  h = hashlib.sha256(f'{type(x).__name__} {x!r}'.encode()).digest()
  finite = not isinstance(x, float) or math.isfinite(x)
  return int.from_bytes(h[:4], 'big'), int.from_bytes(h[4:8], 'big'), int(not finite)
