"""Fingerprints: against a slow oracle, any one flipped bit, any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp
from jaxsparse.training import fingerprints

DTYPES = [
  *('bool', 'int4', 'uint4', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32'),
  *('float4_e2m1fn', 'float8_e4m3fn', 'float8_e5m2', 'float16', 'bfloat16', 'float32'),
  'complex64',
]


def values(dtype, shape, seed=0):
  """Finite values of a dtype, signed zeros and subnormals among them."""
  rng = np.random.default_rng(seed)
  if dtype == 'bool':
    return rng.random(shape) < 0.5
  if 'int' in dtype:
    info = jnp.iinfo(dtype)
    return rng.integers(int(info.min), int(info.max) + 1, shape).astype(dtype)
  x = rng.choice([-0.0, 1e-39, -1.5, 0.5, 3.0], shape).astype(dtype)
  return x * np.asarray(1 + 1j, dtype) if dtype == 'complex64' else x


def _mix(i):
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    i = (i ^ (i >> shift)) * factor % 2**32
  return i ^ (i >> 16)


def _oracle(words):
  """The module's formula on Python integers."""
  golden = 0x9E3779B9
  first = sum(w * (_mix(i) | 1) for i, w in enumerate(words))
  second = sum(_mix(w ^ _mix((i + golden) % 2**32)) for i, w in enumerate(words))
  return first % 2**32, second % 2**32


def _words(x):
  if x.dtype.name in ('int4', 'uint4', 'float4_e2m1fn'):
    return [b & 15 for b in x.reshape(-1).tobytes()]
  width = min(4, x.dtype.itemsize)
  return np.frombuffer(x.tobytes(), f'<u{width}').tolist()


@pytest.mark.parametrize('dtype', DTYPES)
def test_device_host_and_oracle_agree(dtype):
  x = values(dtype, (5, 6))
  flat = {'host': x, 'device': jnp.asarray(x)}
  found, broken = fingerprints.measure(flat)
  assert found == dict.fromkeys(flat, _oracle(_words(x)))
  assert broken == []


@pytest.mark.parametrize('dtype', ['float64', 'int64', 'complex128'])
def test_wide_numpy_arrays_are_not_narrowed(dtype):
  x = np.arange(6).astype(dtype) * 3
  assert jsp.fingerprint(x) == {'': _oracle(_words(x))}


@given(
  st.sampled_from(['float32', 'bfloat16', 'int8', 'bool']), st.integers(0, 29), st.integers(0, 31)
)
def test_any_flipped_bit_changes_the_first_sum(dtype, i, bit):
  x = values(dtype, (5, 6))
  raw = bytearray(x.tobytes())
  bit = 0 if dtype == 'bool' else bit % (8 * x.dtype.itemsize)
  raw[i * x.dtype.itemsize + bit // 8] ^= 1 << bit % 8
  flipped = np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)
  (a,), (b,) = (fingerprints.measure({'x': jnp.asarray(v)})[0].values() for v in (x, flipped))
  assert a[0] != b[0]


def test_exchanged_elements_and_shapes_are_seen():
  x = jnp.arange(12.0).reshape(3, 4)
  assert jsp.fingerprint(x) != jsp.fingerprint(x[::-1])
  assert jsp.fingerprint(x) == jsp.fingerprint(x.reshape(-1))
  assert jsp.digest(x) != jsp.digest(x.reshape(-1))
  assert jsp.digest({'a': jnp.float32(0)}) != jsp.digest({'a': jnp.int32(0)})


def test_every_mesh_gives_the_same():
  tree = {d: values(d, (8, 16)) for d in ('float32', 'bfloat16', 'int8', 'bool', 'int4')}
  expected = jsp.digest(tree)
  for rows, columns in ((1, 1), (2, 4), (8, 1), (1, 8)):
    mesh = Mesh(np.array(jax.devices()[: rows * columns]).reshape(rows, columns), ('a', 'b'))
    for spec in (P('a', 'b'), P('b', 'a'), P(None, ('a', 'b')), P()):
      assert jsp.digest(jax.device_put(tree, NamedSharding(mesh, spec))) == expected


def test_leaves_on_several_sets_of_devices():
  first, last = jax.devices()[0], jax.devices()[-1]
  tree = {'a': jax.device_put(1.0, first), 'b': jax.device_put(1.0, last), 'c': jnp.float32(1)}
  assert len(set(jsp.fingerprint(tree).values())) == 1


def test_python_numbers_keys_and_empty_arrays():
  found = jsp.fingerprint(
    {'n': 2**80, 'x': 0.1, 'b': True, 'k': jax.random.key(1), 'e': jnp.zeros(0)}
  )
  other = jsp.fingerprint({'n': 2**80, 'x': 0.1, 'b': 1, 'k': jax.random.key(2), 'e': jnp.zeros(0)})
  assert [found[k] == other[k] for k in found] == [False, True, False, True, True]
  assert found[next(iter(other))] != (0, 0)


def test_names_are_injective():
  tree = {'a.b': 1, 'a': {'b': 1, '/x': 1, '../x': 1}, "a']['b": 1, 1: 1, '1': 1}
  tree = {str(k) if k == 1 else k: v for k, v in tree.items() if k != 1} | {'é\n': 1}
  names = list(jsp.fingerprint(tree))
  assert len(set(names)) == len(names) == len(jax.tree.leaves(tree))
  assert all(set(n) <= set('%_-~') or n.replace('%', '').replace('_', '').isalnum() for n in names)


def test_what_is_not_finite_is_named():
  tree = {
    'nan': jnp.array([1, jnp.nan], jnp.bfloat16),
    'inf': np.float64('inf'),
    'ok': jnp.array([7]),
    'x': float('nan'),
    'z': jnp.array([1 + 1j * jnp.inf]),
  }
  _, broken = fingerprints.measure(fingerprints.flatten(tree))
  assert broken == [f'%5B%27{name}%27%5D' for name in ('inf', 'nan', 'x', 'z')]


def test_a_leaf_that_is_no_array_is_refused():
  with pytest.raises(TypeError, match=r"\['name'\]: expected an array .* found a str"):
    jsp.fingerprint({'name': 'rigl'})
