"""Masks of weights that devices share: NumPy's stable argsort and one device's, bit for bit.

What moves between devices is read from the compiled program, and for a pod from the program that
libtpu compiles without one.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp
from launch.pods import topology

MESHES = ((1, 1), (2, 4), (8, 1), (1, 8))
SPECS = {'a': P('data', 'model'), 'b': P('model', None)}
FILLS = ('normal', 'ties', 'equal', 'zeros')
MOST_PASSES = 66
METHODS = (
  'magnitude(0.5)', 'magnitude(linear(0.5, end=2, every=1))', 'magnitude(0.5, distribution=pooled)',
  'magnitude(0.5, pattern=channel())', 'nm(2, 4)', 'static(0.5)', 'rigl(0.5, every=1, end=9)',
  'sparse_evolution(0.5, every=1, end=9)', 'snfs(0.5, every=1, end=9)',
  'movement(linear(0.5, end=2, every=1))', 'straight_through(0.5)', 'top_kast(0.75, every=1)',
  'ac_dc(0.5, start=1, every=1, end=3)',
)


def mesh_of(shape):
  devices = np.array(jax.devices()[:shape[0] * shape[1]]).reshape(shape)
  return jax.sharding.Mesh(devices, ('data', 'model'))


def weights(fill, dtype):
  rng = np.random.default_rng(0)
  shapes = {'a': (16, 24), 'b': (32, 8)}
  make = {'normal': lambda s: rng.normal(size=s), 'ties': lambda s: rng.integers(-3, 4, s) / 2,
          'equal': np.ones, 'zeros': np.zeros}[fill]
  return {name: jnp.asarray(make(shape), dtype) for name, shape in shapes.items()}


def placed(params, mesh):
  return {k: jax.device_put(w, NamedSharding(mesh, SPECS[k])) for k, w in params.items()}


def pooled_by_numpy(params, kept):
  flat = np.concatenate([np.abs(np.asarray(w, np.float32)).ravel() for w in params.values()])
  mask = np.zeros(flat.size, bool)
  mask[np.argsort(-flat, kind='stable')[:kept]] = True
  found, start = {}, 0
  for name, w in params.items():
    found[name] = mask[start:start + w.size].reshape(w.shape)
    start += w.size
  return found


class ShardedMasksTest(parameterized.TestCase):

  @parameterized.product(fill=FILLS, dtype=('float32', 'bfloat16'))
  @pytest.mark.sampled(4)
  def test_one_threshold_over_all_is_numpys_on_every_mesh(self, fill, dtype):
    params = weights(fill, dtype)
    transform = jsp.magnitude(0.8, distribution=jsp.pooled)
    expected = pooled_by_numpy(params, 640 - round(640 * 0.8))
    for shape in MESHES:
      _, state = transform.init(placed(params, mesh_of(shape)))
      for name, mask in jsp.masks(state).items():
        np.testing.assert_array_equal(mask, expected[name], f'{shape} {name}')

  @parameterized.product(text=METHODS, shape=((2, 4), (8, 1)))
  @pytest.mark.sampled(5)
  def test_masks_lie_where_their_weights_lie(self, text, shape):
    params, tx = placed(weights('normal', 'float32'), mesh_of(shape)), optax.adam(1e-2)
    transform = jsp.parse(text)
    alone = weights('normal', 'float32')

    def check(state, other):
      for name, mask in jsp.masks(state).items():
        self.assertTrue(mask.sharding.is_equivalent_to(params[name].sharding, 2), name)
        np.testing.assert_array_equal(mask, jsp.masks(other)[name])

    check(transform.init(params)[1], transform.init(alone)[1])
    loss = lambda p: sum((w**2).sum() for w in p.values())
    step = jsp.train_step(loss, tx, transform)
    ts, one = (jsp.TrainState.create(transform, tx, p) for p in (params, alone))
    for _ in range(3):
      (ts, _, _), (one, _, _) = step(ts), step(one)
      check(ts.state, one.state)

  def test_a_restored_mask_lies_where_its_weight_lies(self):
    params, tx = placed(weights('normal', 'float32'), mesh_of((2, 4))), optax.adam(1e-2)
    transform = jsp.magnitude(0.5)
    ts = jsp.TrainState.create(transform, tx, params)
    with tempfile.TemporaryDirectory() as folder:
      jsp.save_checkpoint(pathlib.Path(folder, 'saved'), 1, ts[:3], transform)
      (_, state, _), _, _ = jsp.restore_checkpoint(
          pathlib.Path(folder, 'saved'), ts[:3], transform)
    for name, mask in jsp.masks(state).items():
      self.assertTrue(mask.sharding.is_equivalent_to(params[name].sharding, 2), name)
      np.testing.assert_array_equal(mask, jsp.masks(ts.state)[name])

  @parameterized.parameters(*MESHES[1:])
  def test_little_moves_and_nothing_is_gathered(self, *shape):
    params = placed(weights('ties', 'float32'), mesh_of(shape))
    transform = jsp.magnitude(0.8, distribution=jsp.pooled)
    run = jax.jit(lambda p: jsp.masks(transform.init(p)[1]),
                  out_shardings={k: w.sharding for k, w in params.items()})
    text = run.lower(params).compile().as_text()
    self.assertNotRegex(text, r'all-gather|all-to-all|collective-permute|\ssort\(')
    self.assertLess(moved_bytes(text) * MOST_PASSES, 20 * 1024)


def moved_bytes(text):
  """Bytes of all results of all-reduces, each run once."""
  sizes = {'s32': 4, 'u32': 4, 'f32': 4, 'pred': 1}
  total = 0
  for result in re.findall(r'=\s(.*?)\sall-reduce(?:-start)?\(', text):
    for dtype, shape in re.findall(r'(\w+)\[([\d,]*)\]', result):
      total += sizes[dtype] * int(np.prod([int(n) for n in shape.split(',') if n]))
  return total


def run_alone(script, **environment):
  """What a script beside this file prints, as JSON; it has devices of its own."""
  path = pathlib.Path(__file__).with_name(script)
  code = f'import runpy; runpy.run_path({str(path)!r}, run_name="__main__")'
  keep = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  said = subprocess.run([sys.executable, '-c', code], env=keep | environment, check=False,
                        capture_output=True, text=True, timeout=300)
  assert said.returncode == 0, said.stderr[-2000:]
  return json.loads(said.stdout.splitlines()[-1])


def test_one_device_counts_by_columns_and_finds_the_same():
  assert run_alone('one_device_masks.py') == {'devices': 1, 'wrong': []}


@pytest.mark.tpu_aot
def test_a_billion_weights_of_a_pod_need_little_scratch():
  pytest.importorskip('libtpu', reason='libtpu is not installed: pip install libtpu')
  found = run_alone('pod_masks.py', **topology.environment())
  for leaves, one in found.items():
    assert one['weights'] == 2**30, leaves
    assert one['scratch_bytes'] <= 2 * 2**20, (leaves, one)
    assert not one['gathers'], leaves
    assert one['all_reduce_bytes'] * MOST_PASSES < 20 * 1024, (leaves, one)


if __name__ == '__main__':
  absltest.main()
