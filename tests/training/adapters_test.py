"""Adapters saved alone: a few kilobytes, whole, and only onto the base they belong to."""

import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import jaxsparse as jsp


def params(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {'one': {'kernel': draw(256, 128), 'bias': draw(128)}, 'two': {'kernel': draw(128, 64)}}


class AdaptersTest(absltest.TestCase):

  def test_round_trip_size_and_wrong_bases(self):
    transform = jsp.lora(1, base=jsp.nf4(double_quantize=True))
    latents, state = jax.jit(transform.init)(params())
    trained = jax.tree.map(lambda x: x + 1, latents)
    with tempfile.TemporaryDirectory() as directory:
      jsp.save_adapter(directory, transform, trained, state)
      files = [p for p in pathlib.Path(directory).rglob('*') if p.is_file()]
      adapter = 4 * (256 + 128 + 128 + 64)
      self.assertLess(sum(p.stat().st_size for p in files), adapter + 12_000)
      found = jsp.load_adapter(directory, transform, latents, state)
      expected = trained | {'one': trained['one'] | {'bias': latents['one']['bias']}}
      chex.assert_trees_all_equal(found, expected)
      other = params()
      other['two']['kernel'] = other['two']['kernel'].at[0, 0].add(9)
      with self.assertRaisesRegex(ValueError, 'trained on another base: two/kernel differ'):
        jsp.load_adapter(directory, transform, *jax.jit(transform.init)(other))
      with self.assertRaisesRegex(ValueError, 'recipe differs'):
        jsp.load_adapter(directory, jsp.lora(1, base=jsp.nf4()), latents, state)
      with self.assertRaisesRegex(ValueError, 'step 0'):
        jsp.save_adapter(directory, transform, trained, state)
      smaller = params()
      del smaller['two']
      with self.assertRaisesRegex(ValueError, 'the tree differs'):
        jsp.load_adapter(directory, transform, *jax.jit(transform.init)(smaller))
    with tempfile.TemporaryDirectory() as directory:
      with self.assertRaises(jsp.NoCheckpoint):
        jsp.load_adapter(directory, transform, latents, state)
      broken = jax.tree.map(lambda x: x * jnp.nan, latents)
      with self.assertRaisesRegex(jsp.NonFiniteError, 'kernel'):
        jsp.save_adapter(directory, transform, broken, state)
      pruned = jsp.nm(2, 4)
      with self.assertRaisesRegex(ValueError, 'No weight shows an adapter'):
        jsp.save_adapter(directory, pruned, *pruned.init(params()))
      inside = jsp.parse('magnitude(0.5) | lora(2)')
      with self.assertRaisesRegex(ValueError, 'one/kernel/a: .*by save_checkpoint'):
        jsp.save_adapter(directory, inside, *inside.init(params()))

  def test_what_adalora_pruned_is_not_saved(self):
    weights = {'kernel': params()['two']['kernel']}
    transform = jsp.adalora(4, schedule=jsp.at_step(0, 0.5))
    latents, fresh = transform.init(weights)
    latents = jax.tree.map(lambda x: x + 1, latents)
    state = transform.update(latents, fresh, grads=weights)
    self.assertEqual(int(state.weights['kernel'].kept.sum()), 2)
    with tempfile.TemporaryDirectory() as directory:
      jsp.save_adapter(directory, transform, latents, state)
      found = jsp.load_adapter(directory, transform, latents, fresh)
    chex.assert_trees_all_close(jsp.merge(transform, found, fresh),
                                jsp.merge(transform, latents, state), atol=1e-5)


if __name__ == '__main__':
  absltest.main()
