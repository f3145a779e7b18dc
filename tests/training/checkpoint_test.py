"""Checkpoints are whole, carry their recipe, and refuse what does not match."""

import os
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


class CheckpointTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = self.enter_context(tempfile.TemporaryDirectory())
    self.params = {'dense': {'kernel': jnp.arange(32.0).reshape(8, 4), 'bias': jnp.zeros(4)}}
    self.transform = jsp.parse("nm(2, 4) | fake_quantize('int8')")

  def test_a_train_state_resumes_to_the_bit(self):
    transform, tx = jsp.rigl(0.5, every=2, end=20), optax.adam(0.1)
    loss = lambda p, x: ((x @ p['dense']['kernel']) ** 2).sum()
    step = jsp.train_step(loss, tx, transform)
    x = jnp.ones((2, 8))
    ts = jsp.TrainState.create(transform, tx, self.params)
    for _ in range(3):
      ts, _, _ = step(ts, x)
    jsp.save_checkpoint(self.directory, ts.count, ts, transform, extra={'seed': 0})
    for _ in range(4):
      ts, _, _ = step(ts, x)
    like = jsp.TrainState.create(transform, tx, self.params)
    again, number, extra = jsp.restore_checkpoint(self.directory, like, transform)
    self.assertEqual((number, again.count, extra), (3, 3, {'seed': 0}))
    for _ in range(4):
      again, _, _ = step(again, x)
    chex.assert_trees_all_equal(again, ts)

  def test_packed_weights_and_keys_round_trip(self):
    packed = self.transform.pack(*self.transform.init(self.params))
    tree = {'packed': packed, 'key': jax.random.key(3), 'a.b': jnp.ones(2),
            'a': {'b': jnp.zeros(2)}}
    jsp.save_checkpoint(self.directory, 0, tree, self.transform)
    restored, _, _ = jsp.restore_checkpoint(self.directory, tree)
    chex.assert_trees_all_equal(restored, tree)

  def test_another_recipe_is_refused_with_a_diff(self):
    tree = self.transform.init(self.params)
    jsp.save_checkpoint(self.directory, 0, tree, self.transform)
    with self.assertRaisesRegex(ValueError, r"(?s)found +nm\(2, 4\).*expected +nm\(1, 4\)"):
      jsp.restore_checkpoint(self.directory, tree, jsp.parse("nm(1, 4) | fake_quantize('int8')"))

  def test_another_shape_or_dtype_is_refused_by_name(self):
    jsp.save_checkpoint(self.directory, 0, self.params)
    wide = {'dense': {'kernel': jnp.ones((8, 5)), 'bias': jnp.zeros(4, jnp.bfloat16)}}
    with self.assertRaisesRegex(ValueError, r"(?s)bias.*float32\[4\].*bfloat16\[4\].*kernel.*"
                                            r'float32\[8, 4\], expected float32\[8, 5\]'):
      jsp.restore_checkpoint(self.directory, wide)
    with self.assertRaisesRegex(ValueError, r'kernel.*expected nothing'):
      jsp.restore_checkpoint(self.directory, {'dense': {'bias': jnp.zeros(4)}})

  def test_a_broken_weight_is_not_saved(self):
    broken = {'kernel': jnp.array([1.0, jnp.nan])}
    with self.assertRaisesRegex(ValueError, 'kernel.*at step 5 has values that are NaN'):
      jsp.save_checkpoint(self.directory, 5, broken)
    self.assertEqual(os.listdir(self.directory), [])

  def test_an_existing_step_stays_as_it_is(self):
    jsp.save_checkpoint(self.directory, 1, self.params)
    with self.assertRaisesRegex(ValueError, 'step 1 exists already'):
      jsp.save_checkpoint(self.directory, 1, {'other': jnp.ones(2)})
    restored, _, _ = jsp.restore_checkpoint(self.directory, self.params)
    chex.assert_trees_all_equal(restored, self.params)

  def test_nothing_there(self):
    with self.assertRaisesRegex(ValueError, 'no checkpoint'):
      jsp.restore_checkpoint(pathlib.Path(self.directory) / 'none', self.params)
    with self.assertRaisesRegex(ValueError, r'no checkpoint of step 4; found \[1\]'):
      jsp.save_checkpoint(self.directory, 1, self.params)
      jsp.restore_checkpoint(self.directory, self.params, step=4)

  def test_a_hand_made_transform_must_not_pretend_to_a_recipe(self):
    with self.assertRaisesRegex(ValueError, 'made by hand'):
      jsp.save_checkpoint(self.directory, 0, self.params,
                          jsp.Transform(*jsp.identity()[:4]))


if __name__ == '__main__':
  absltest.main()
