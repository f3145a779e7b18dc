"""Any flipped bit, truncation or deletion in a checkpoint is found, and the older step is used."""

import os
import random

import chex
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from jaxsparse.training import manifest


def _state(step):
  """A leaf of its own in Orbax, two in the bundle, and a number in the manifest."""
  weight = np.random.default_rng(step).normal(size=(300, 1000)).astype('float32')
  return {'w': jnp.asarray(weight), 'b': jnp.asarray(weight[0]), 'mask': weight[:9] > 0, 'n': step}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A directory with steps 1 to 3."""
  path = tmp_path_factory.mktemp('run')
  with jsp.CheckpointStore(path, timeout_seconds=30) as store:
    for step in (1, 2, 3):
      store.save(step, _state(step))
    store.wait()
  return path


def _files(run, step):
  return sorted(p for p in (run / str(step)).rglob('*') if p.is_file())


def _flip(path, chance):
  data = bytearray(path.read_bytes())
  data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
  path.write_bytes(data)


def _truncate(path, chance):
  path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _delete(path, chance):
  path.unlink()


def _append(path, chance):
  path.write_bytes(path.read_bytes() + b'\0')


def _injure_and_restore(run, victims):
  """Restores after `injure(path)` of each victim, heals everything, and returns what was found."""
  healthy = {path: path.read_bytes() for path, _ in victims}
  for path, injure in victims:
    injure(path)
  with jsp.CheckpointStore(run) as store:
    found = store.restore(_state(0))
  for aside in run.glob('*.damaged'):
    aside.rename(run / aside.name.removesuffix('.damaged'))
  for path, data in healthy.items():
    path.write_bytes(data)
  return found


def _expect(run, victims, steps):
  found = _injure_and_restore(run, victims)
  what = [(str(path.relative_to(run)), injure) for path, injure in victims]
  assert [step for step, _ in found.skipped] == steps, what
  chex.assert_trees_all_equal(found.tree, _state(3 - len(steps)))
  return found


def test_two_hundred_flipped_bits(run):
  chance = random.Random(0)
  files = _files(run, 3)
  sizes = [p.stat().st_size for p in files]
  for k in range(200):
    # By bytes nearly all hit the largest file, so every second one is by file.
    path = chance.choices(files, sizes if k % 2 else None)[0]
    _expect(run, [(path, lambda p: _flip(p, chance))], [3])


@pytest.mark.parametrize('injure', [_truncate, _delete, _append])
def test_every_file_counts(run, injure):
  chance = random.Random(0)
  names = {path.name for path in _files(run, 3)}
  assert {'manifest.json', '_METADATA', '_CHECKPOINT_METADATA'} <= names
  for path in _files(run, 3):
    found = _expect(run, [(path, lambda p: injure(p, chance))], [3])
    assert path.name in found.skipped[0][1]


def test_every_bit_of_the_first_line_of_the_manifest(run):
  path = run / '3' / manifest.NAME
  data = path.read_bytes()
  for i in range(66):
    path.write_bytes(data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :])
    with pytest.raises(manifest.Damaged):
      manifest.read(run / '3')
  path.write_bytes(data)
  assert manifest.read(run / '3')['step'] == 3


def test_the_newest_intact_step_wins(run):
  chance = random.Random(0)
  for _ in range(60):
    steps = [3, 2][: chance.randint(1, 2)]
    injuries = [chance.choice([_flip, _truncate, _delete]) for _ in steps]
    victims = [
      (chance.choice(_files(run, s)), lambda p, f=f: f(p, chance)) for s, f in zip(steps, injuries)
    ]
    _expect(run, victims, steps)


def test_extra_files_links_and_pipes_are_seen(run, tmp_path):
  for make in (lambda p: p.write_text(''), lambda p: p.symlink_to(tmp_path), os.mkfifo):
    make(run / '3' / 'd' / 'extra')
    with jsp.CheckpointStore(run) as store:
      found = store.restore(_state(0))
    assert 'd/extra' in found.skipped[0][1]
    (run / '3.damaged' / 'd' / 'extra').unlink()
    (run / '3.damaged').rename(run / '3')


def _largest(run, step):
  return max(_files(run, step), key=lambda p: p.stat().st_size)


def test_values_that_were_wrong_before_they_were_hashed_are_seen(run):
  """The fingerprint, taken on the device, covers what the hash of a file cannot."""

  def injure(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4  # amid the values: the file's own structure is at its ends
    path.write_bytes(data)
    about = manifest.read(run / '3')
    manifest.write(
      run / '3', {**about, 'files': manifest.hash_files(run / '3', list(manifest.files(run / '3')))}
    )

  healthy = (run / '3' / manifest.NAME).read_bytes()
  found = _injure_and_restore(run, [(_largest(run, 3), injure)])
  (run / '3' / manifest.NAME).write_bytes(healthy)
  assert found.step == 2
  assert "the fingerprint differs of ['w']" in found.skipped[0][1]


def test_damaged_steps_are_kept_under_another_name(tmp_path):
  with jsp.CheckpointStore(tmp_path) as store:
    for _ in range(2):
      store.save(1, _state(1))
      store.wait()
      _flip(_largest(tmp_path, 1), random.Random(0))
      with pytest.raises(
        jsp.NoCheckpoint, match=r'(?s)no checkpoint; found \[1\].*step 1: .*SHA-256'
      ):
        store.restore(_state(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['1.damaged', '1.damaged-2']
    with pytest.raises(jsp.NoCheckpoint, match=r'found \[\]'):
      store.restore(_state(0))


@pytest.mark.parametrize(
  'change',
  [
    {'leaves': {'x': {'array': '../../../x', 'shape': [], 'dtype': 'float32', 'print': [0, 0]}}},
    {'leaves': {'x': {'offset': -8, 'shape': [], 'dtype': 'float32', 'print': [0, 0]}}},
    {'leaves': {'x': 'y'}},
    {'leaves': ['x']},
    {'files': {'../../etc/passwd': [1, 'a']}},
    {'files': {'/etc/passwd': [1, 'a']}},
    {'files': {'d': 3}},
    {'step': -1},
    {'step': 'x'},
    {'extra': None},
    {'recipe': {}},
  ],
)
def test_a_manifest_made_elsewhere_reaches_nothing_outside(run, change):
  path = run / '3' / manifest.NAME
  found = _injure_and_restore(
    run, [(path, lambda p: manifest.write(run / '3', {**manifest.read(run / '3'), **change}))]
  )
  assert [step for step, _ in found.skipped] == [3]


def test_a_format_of_the_future_is_no_damage(run):
  path = run / '3' / manifest.NAME
  healthy = path.read_bytes()
  manifest.write(run / '3', {**manifest.read(run / '3'), 'version': 9})
  with jsp.CheckpointStore(run) as store, pytest.raises(ValueError, match='format version 9'):
    store.restore(_state(0))
  path.write_bytes(healthy)
  assert (run / '3').is_dir()
