"""The store in one process: round trips, refusals, retention, full disks, the loop's side of it."""

import contextlib
import os
import resource
import shutil
import subprocess
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp
from tests.training import fingerprints_test

_LARGE = (1056, 1000)  # above a mebibyte in every dtype: an Orbax array of its own


class Pair(NamedTuple):
  """A node that is no dict."""

  a: object
  b: object


@pytest.fixture
def store(tmp_path):
  """A store in an empty directory."""
  with jsp.CheckpointStore(tmp_path, keep=2, timeout_seconds=30) as out:
    yield out


def _save(store, step, tree, **extra):
  store.save(step, tree, **extra)
  store.wait()


def _bits(x):
  if hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return 'key', x.shape, np.asarray(jax.random.key_data(x)).tobytes()
  if not hasattr(x, 'dtype'):
    return repr(x)
  return str(x.dtype), x.shape, np.asarray(x).tobytes()


def _assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(*map(jax.tree.leaves, (found, expected))):
    assert type(a) is type(b)
    assert _bits(a) == _bits(b)


@pytest.mark.parametrize('shape', [(), (0,), (3, 0), (5, 6), _LARGE])
def test_every_dtype_comes_back_bit_for_bit(store, shape):
  arrays = {d: fingerprints_test.values(d, shape) for d in fingerprints_test.DTYPES}
  tree = {
    'device': {d: jnp.asarray(x) for d, x in arrays.items()},
    'host': {**{d: np.asarray(x) for d, x in arrays.items()}, 'float64': np.full(shape, 0.1)},
  }
  _save(store, 0, tree)
  like = jax.tree.map(lambda x: x if isinstance(x, np.ndarray) else jnp.zeros_like(x), tree)
  _assert_same(store.restore(like).tree, tree)


def test_every_kind_of_node_and_leaf_comes_back(store):
  tree = Pair(
    {
      'none': None,
      'empty': {},
      'list': [jnp.ones(2), ()],
      'a.b': jnp.ones(1),
      'a': {'b': jnp.zeros(1)},
    },
    {
      'a.b': jnp.ones(1),
      'a': {'b': jnp.zeros(1)},
      'bool': True,
      'int': -(2**70),
      'float': 0.1,
      'numpy scalar': np.float64(0.1),
      'key': jax.random.key(3),
      'keys': jax.random.split(jax.random.key(4, impl='rbg'), 3),
      '../../x': jnp.ones(3),
      '/etc/passwd': jnp.ones(4),
      'é\n%2F': jnp.ones(5),
    },
  )
  _save(store, 7, tree, extra={'seed': 1, 'nested': [None, 'x']})
  found = store.restore(tree)
  _assert_same(found.tree, tree)
  assert found[1:] == (7, {'seed': 1, 'nested': [None, 'x']}, [])


def test_abstract_targets_and_other_meshes(store):
  devices = np.array(jax.devices())
  old, new = Mesh(devices.reshape(2, 4), ('a', 'b')), Mesh(devices.reshape(8, 1), ('a', 'b'))
  tree = {
    'w': jnp.arange(_LARGE[0] * 1000.0).reshape(1000, -1),
    'b': jnp.arange(16),
    'key': jax.random.key(1),
  }
  specs = {'w': P('a', 'b'), 'b': P('b'), 'key': P()}
  place = lambda mesh: {k: NamedSharding(mesh, spec) for k, spec in specs.items()}
  _save(store, 1, jax.device_put(tree, place(old)))
  like = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, place(new)
  )
  found = store.restore(like).tree
  assert jsp.digest(found) == jsp.digest(tree)
  assert all(found[k].sharding == s for k, s in place(new).items())


def test_what_was_nowhere_in_particular_stays_so(store):
  """Committed to a device, a scalar could not meet arrays on a mesh in one program."""
  tree = {
    'small': jnp.ones(3),
    'large': jnp.ones(_LARGE),
    'there': jax.device_put(1.0, jax.devices()[2]),
  }
  _save(store, 1, tree)
  found = store.restore(tree).tree
  assert {k: x.committed for k, x in found.items()} == {
    'small': False,
    'large': False,
    'there': True,
  }
  assert found['there'].devices() == {jax.devices()[2]}


def test_all_differences_at_once_and_nothing_is_set_aside(tmp_path):
  tree = {
    'w': jnp.ones((4, 2)),
    'b': jnp.ones(2),
    'old': jnp.ones(1),
    'n': 1,
    'm': jnp.ones(2, bool),
  }
  like = {
    'w': jnp.ones((4, 3)),
    'b': jnp.ones(2, jnp.int8),
    'new': jnp.ones(1),
    'n': 1.0,
    'm': jnp.ones(2),
  }
  with jsp.CheckpointStore(tmp_path, jsp.nm(2, 4)) as store:
    _save(store, 3, tree)
  with jsp.CheckpointStore(tmp_path, jsp.nm(1, 4)) as store:
    with pytest.raises(ValueError, match='differs') as caught:
      store.restore(like)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith('step 3: the recipe differs:')
    assert lines[1:] == [
      '  found    nm(2, 4)',
      '  expected nm(1, 4)',
      'the tree differs:',
      "  ['b']: found float32[2], expected int8[2]",
      "  ['m']: found bool[2], expected float32[2]",
      "  ['n']: found python int[], expected python float[]",
      "  ['new']: found nothing, expected float32[1]",
      "  ['old']: found float32[1], expected nothing",
      "  ['w']: found float32[4, 2], expected float32[4, 3]",
    ]
    assert store.steps() == [3]


def test_a_broken_state_is_never_committed(store):
  _save(store, 1, {'w': jnp.ones(2)})
  broken = {
    'a': jnp.array([1, jnp.nan]),
    'b': jnp.array([jnp.inf], jnp.bfloat16),
    'c': jnp.ones(1),
    'd': np.array([np.nan]),
    'e': float('-inf'),
    'f': jnp.full(_LARGE, jnp.nan),
  }
  with pytest.raises(jsp.NonFiniteError, match='step 2') as caught:
    store.save(2, broken)
  assert [k for k in broken if f"['{k}']" in str(caught.value)] == ['a', 'b', 'd', 'e', 'f']
  store.wait()
  assert (store.steps(), store.failure(), os.listdir(store.directory)) == ([1], None, ['1'])
  _save(store, 2, {'w': jnp.zeros(2)})
  assert store.steps() == [1, 2]


def test_older_steps_go_when_a_newer_is_committed(store):
  for step in (1, 5, 3, 10):
    _save(store, step, {'w': jnp.ones(2)})
  assert store.steps() == [5, 10]
  assert sorted(os.listdir(store.directory)) == ['10', '5']


def test_steps_are_read_from_disk(store):
  for step in (np.int32(1), jnp.int32(2)):
    _save(store, step, {'w': jnp.full(2, step)})
  shutil.rmtree(store.directory / '2')
  assert store.steps() == [1]
  assert store.restore({'w': jnp.zeros(2, int)}).step == 1


def test_existing_steps_and_wrong_arguments(store, tmp_path):
  _save(store, 1, {'w': jnp.ones(2)})
  with pytest.raises(ValueError, match='step 1 exists already'):
    store.save(1, {'w': jnp.ones(2)})
  with pytest.raises(ValueError, match='JSON'):
    store.save(2, {'w': jnp.ones(2)}, extra={'x': float('nan')})
  with pytest.raises(TypeError, match='JSON'):
    store.save(2, {'w': jnp.ones(2)}, extra={'x': jnp.ones(2)})
  with pytest.raises(TypeError, match=r"\['w'\].*found a str"):
    store.save(2, {'w': 'rigl'})
  with pytest.raises(ValueError, match='step: expected'):
    store.save(-1, {'w': jnp.ones(2)})
  with pytest.raises(ValueError, match='keep'):
    jsp.CheckpointStore(tmp_path, keep=0)
  with pytest.raises(ValueError, match='mount the bucket'):
    jsp.CheckpointStore('gs://bucket/run')
  assert store.steps() == [1]


def test_a_step_asked_for_by_number(store):
  for step in (1, 2):
    _save(store, step, {'w': jnp.full(2, step)})
  assert store.restore({'w': jnp.zeros(2, int)}, step=1).tree['w'].tolist() == [1, 1]
  with pytest.raises(jsp.NoCheckpoint, match=r'no checkpoint of step 4; found \[1, 2\]'):
    store.restore({'w': jnp.zeros(2, int)}, step=4)


def test_leftovers_of_a_killed_writer_go_with_the_next_save(store):
  store.directory.mkdir(exist_ok=True)
  for name in ('3.writing', '3.writing.orbax-checkpoint-tmp', '2.deleting'):
    (store.directory / name / 'd').mkdir(parents=True)
  (store.directory / '3.writing-1').write_text('x')
  for name in ('1.damaged', 'notes.writing'):
    (store.directory / name).mkdir()
  assert store.steps() == []
  _save(store, 4, {'w': jnp.ones(2)})
  assert sorted(os.listdir(store.directory)) == ['1.damaged', '4', 'notes.writing']


def test_buffers_may_be_donated_at_once(store):
  bump = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  tree = {'large': jnp.zeros(_LARGE), 'small': jnp.zeros(9, jnp.int8)}
  for step in range(1, 9):
    tree = bump(tree)
    store.save(step, tree)
    for _ in range(3):
      tree = bump(tree)
  store.wait()
  for step in (7, 8):
    found = store.restore(tree, step=step).tree
    chex.assert_trees_all_equal(found, jax.tree.map(lambda x: jnp.full_like(x, 4 * step - 3), tree))


@contextlib.contextmanager
def _largest_file(size):
  free = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, free[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, free)


def test_a_full_disk_is_reported_by_the_next_step(store):
  tree = {'w': jnp.ones(_LARGE)}
  _save(store, 1, tree)
  with _largest_file(100_000):
    store.save(2, tree)
    failure = store.failure()
  assert isinstance(failure, jsp.SaveError)
  assert str(failure) == (
    "Step 2 was not saved: [Errno 27] File too large: '%s'" % (store.directory / '2.writing-0')
  )
  assert store.failure() is None
  store.wait()
  assert os.listdir(store.directory) == ['1']
  _save(store, 3, tree)
  assert (store.steps(), store.restore(tree).step) == ([1, 3], 3)


def test_a_disk_that_fills_while_writing_is_reported(store):
  """The room was there when asked for: Orbax's own headers are what no longer fits."""
  tree = {'w': jnp.ones(_LARGE)}
  _save(store, 1, tree)
  with _largest_file(tree['w'].nbytes + 64):
    store.save(2, tree)
    with pytest.raises(jsp.SaveError, match=r'Step 2 was not saved: \[Errno 27\] File too large: '):
      store.wait()
  assert store.failure() is None
  assert os.listdir(store.directory) == ['1']
  _save(store, 3, tree)
  assert (store.steps(), store.restore(tree).step) == ([1, 3], 3)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 10 MiB."""
  path = tmp_path / 'disk'
  path.mkdir()
  call = ['mount', '-t', 'tmpfs', '-o', 'size=10m,nr_inodes=60', 'none', str(path)]
  if (
    os.geteuid()
    or not shutil.which('mount')
    or subprocess.run(call, capture_output=True).returncode
  ):
    pytest.skip('mounting a tmpfs needs root')
  yield path
  subprocess.run(['umount', str(path)], check=True)


@pytest.mark.parametrize('ballast', ['bytes', 'inodes'])
def test_no_space_left_on_a_real_file_system(small_disk, ballast):
  tree = {'w': jnp.ones(_LARGE)}  # 4 MiB
  with jsp.CheckpointStore(small_disk / 'run', timeout_seconds=30) as store:
    _save(store, 1, tree)
    if ballast == 'bytes':
      (small_disk / 'ballast').write_bytes(bytes(4 << 20))
    else:  # room for the reservation, and then for some of Orbax's files
      for k in range(40):
        with contextlib.suppress(OSError):
          (small_disk / f'ballast-{k}').touch()
      for k in range(4):
        (small_disk / f'ballast-{k}').unlink(missing_ok=True)
    store.save(2, tree)
    with pytest.raises(jsp.SaveError, match=r'Step 2 .*: \[Errno 28\] No space left on device: '):
      store.wait()
    assert (store.steps(), os.listdir(small_disk / 'run')) == ([1], ['1'])
    for path in small_disk.glob('ballast*'):
      path.unlink()
    _save(store, 3, tree)
    assert store.steps() == [1, 3]
    assert store.restore(tree).step == 3


def test_a_directory_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with jsp.CheckpointStore(tmp_path / 'file' / 'run') as store:
    store.save(1, {'w': jnp.ones(2)})
    with pytest.raises(jsp.SaveError, match=r'\[Errno 20\] Not a directory'):
      store.wait()
    with pytest.raises(jsp.NoCheckpoint):
      store.restore({'w': jnp.ones(2)})


def test_a_failure_nobody_asked_for_is_logged(tmp_path, caplog):
  (tmp_path / 'run').write_text('')
  with jsp.CheckpointStore(tmp_path / 'run') as store:
    store.save(1, {'w': jnp.ones(2)})
  assert 'Step 1 was not saved' in caplog.text
