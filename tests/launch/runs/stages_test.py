"""A run that goes on with factors in the middle: resumed to the bit before and after the change."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jaxsparse as jsp
from experiments import task as tasks
from launch.runs import loop
from tests.launch.runs import loop_test

_TRANSFORM = "at('.*', cuttlefish(every=1, tolerance=1.0, profile='none', scaled=False, warmup=2))"

_BLOCKS = [f'packed_blocks(magnitude({s}, pattern=balanced_blocks(4, 4)))'
           for s in (0.25, 0.5, 0.75)]
_SHRINKING = f"at('b', staged([{', '.join(_BLOCKS)}], at=(0.3, 0.6)))"


def three_layers():
  """Three layers whose stable ranks are small from the start; only the middle one may change."""

  def init():
    keys = jax.random.split(jax.random.key(0), 3)
    thin = jnp.exp(-jnp.arange(16.0))[None]
    return {n: 0.3 * jax.random.normal(k, (16, 16)) * thin for n, k in zip('abc', keys)}

  def apply(params, x):
    return jnp.tanh(jnp.tanh(x @ params['a']) @ params['b']) @ params['c']

  def batch(position):
    x = np.random.default_rng([7, position]).normal(size=(8, 16)).astype('f')
    return x, np.sin(x)

  def loss(params, batch, key):
    del key
    return ((apply(params, batch[0]) - batch[1]) ** 2).mean(), {}

  return tasks.Task(init=init, loss=loss, batch=batch, tx=optax.adam(0.01), steps=16,
                    evaluate=lambda params: {'accuracy': 1.0}, apply=apply,
                    inputs=np.zeros((8, 16), 'f'), weights='.*')


class StagesTest(absltest.TestCase):

  def test_resumed_to_the_bit_across_the_change(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'a').mkdir()
    (folder / 'b').mkdir()
    whole, events = loop_test.train(folder / 'a', three_layers(), _TRANSFORM)
    (stage,) = [e for e in events if e['event'] == 'stage']
    self.assertEqual((stage['step'], set(stage['ranks'])), (5, {'b'}))
    self.assertIsInstance(whole.params['b'], jsp.LowRank)
    self.assertIsInstance(whole.opt_state, jsp.WarmState)
    self.assertEqual(int(whole.opt_state.inner[0].count), 16)   # Adam's count went on
    for stop in (3, 5, 7):   # before, at and after the change
      with self.assertRaises(loop.Preempted):
        loop_test.train(folder / 'b', three_layers(), _TRANSFORM, stop=stop)
    manifest = (folder / 'b/checkpoints/7/manifest.json').read_bytes().partition(b'\n')[2]
    self.assertRegex(json.loads(manifest)['recipe'], r"low_rank\(\{'b': \d+\}\)")
    resumed, _ = loop_test.train(folder / 'b', three_layers(), _TRANSFORM)
    self.assertEqual(jsp.digest(tuple(whole[:3])), jsp.digest(tuple(resumed[:3])))
    self.assertEqual(loop_test.logged(folder / 'a'), loop_test.logged(folder / 'b'))
    with self.assertRaisesRegex(loop.Mismatch, 'the recipe differs'):
      loop_test.train(folder / 'b', three_layers(), 'nm(2, 4)')

  def test_blocks_shrink_at_milestones_and_resume(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (folder / 'a').mkdir()
    (folder / 'b').mkdir()
    whole, events = loop_test.train(folder / 'a', three_layers(), _SHRINKING)
    self.assertEqual([e['step'] for e in events if e['event'] == 'stage'], [5, 10])
    # A panel of 4 outputs holds three of its four blocks, then two, then one.
    self.assertEqual(whole.params['b'].shape, (4, 4, 4))
    self.assertEqual(whole.params['a'].shape, (16, 16))
    for stop in (7, 12):
      with self.assertRaises(loop.Preempted):
        loop_test.train(folder / 'b', three_layers(), _SHRINKING, stop=stop)
    resumed, _ = loop_test.train(folder / 'b', three_layers(), _SHRINKING)
    self.assertEqual(jsp.digest(tuple(whole[:3])), jsp.digest(tuple(resumed[:3])))


if __name__ == '__main__':
  absltest.main()
