"""STR by hand and against a numpy gradient; trained, the threshold prunes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


class SoftThresholdTest(parameterized.TestCase):

  def test_by_hand(self):
    transform = jsp.soft_threshold(initial=0.0)   # sigmoid(0) = 1/2
    params, state = transform.init({'kernel': jnp.asarray([[1.0, -2.0, 0.0]])})
    self.assertEqual(params['kernel'].w.tolist(), [[1.5, -2.5, 0.0]])
    params['kernel'] = params['kernel']._replace(w=jnp.asarray([[0.25, -2.5, 0.75]]))
    self.assertEqual(transform.apply(params, state)['kernel'].tolist(), [[0.0, -2.0, 0.25]])

  def test_gradients_agree_with_numpy(self):
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    s = np.asarray([0.3, -1.0])
    transform = jsp.soft_threshold()
    params, state = transform.init({'kernel': jnp.asarray(w, jnp.float32)})
    latents = jsp.SoftThreshold(jnp.asarray(w, jnp.float32), jnp.asarray(s, jnp.float32))
    self.assertEqual(params['kernel'].threshold.shape, (2,))
    loss = lambda p: (transform.apply(p, state)['kernel'] * g).sum()
    found = jax.grad(loss)({'kernel': latents})['kernel']
    height = 1 / (1 + np.exp(-s))[:, None, None]
    active = np.abs(w) > height
    np.testing.assert_allclose(found.w, g * active, rtol=1e-5)
    slope = -(g * active * np.sign(w)).sum((1, 2)) * (height * (1 - height))[:, 0, 0]
    np.testing.assert_allclose(found.threshold, slope, rtol=1e-4)

  @parameterized.parameters('float32', 'bfloat16')
  def test_packs_its_zeros(self, dtype):
    transform = jsp.soft_threshold()
    w = jnp.asarray(np.random.default_rng(0).normal(size=(32, 32)), dtype)
    params, state = transform.init({'kernel': w})
    params['kernel'] = params['kernel']._replace(threshold=jnp.asarray(2.0))   # sigmoid 0.88
    packed = transform.pack(params, state)
    view = transform.apply(params, state)
    np.testing.assert_array_equal(jsp.densify(packed)['kernel'], view['kernel'])
    self.assertTrue(jsp.is_format(packed['kernel']))
    self.assertLess(jsp.nbytes(packed), w.nbytes)
    self.assertGreater(float((view['kernel'] == 0).mean()), 0.5)

  def test_decay_of_the_threshold_makes_it_sparse(self):
    # One of eight inputs matters; decay draws s up towards 0 from -5, and the rest goes to zero.
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
    y = x[:, :1] * 3
    transform = jsp.soft_threshold()
    tx = optax.partition(
        {'s': optax.chain(optax.add_decayed_weights(5e-3), optax.sgd(1.0)),
         'w': optax.sgd(5e-2)}, jsp.label({'.*/threshold': 's', '.*': 'w'}))
    params = {'kernel': jnp.asarray(rng.normal(size=(8, 1)) * 0.3, jnp.float32)}
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(lambda p: ((x @ p['kernel'] - y) ** 2).mean(), tx, transform)
    for _ in range(300):
      ts, loss, _ = step(ts)
    view = transform.apply(ts.params, ts.state)['kernel']
    self.assertEqual(np.flatnonzero(view).tolist(), [0])
    self.assertLess(float(loss), 1e-2)

  def test_restructures(self):
    with self.assertRaisesRegex(ValueError, r'soft_threshold\(\) restructures params'):
      jsp.wrap(optax.sgd(0.1), jsp.soft_threshold()).init({'kernel': jnp.ones((2, 2))})


if __name__ == '__main__':
  absltest.main()
