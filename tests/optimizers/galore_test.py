"""GaLore is optax's own (`optax.contrib.galore`, arXiv:2403.03507): it works with our step.

It serves where all of a weight trains and its moments are what memory goes to: the moments of
`[m, n]` become those of `[min(m, n), rank]` and a projection. It holds no latents' moments of
`lora`, whose factors are thin already, and masks must not regrow under it: `realign` cannot zero a
single weight's moment in a projection, so static masks (`nm`, `static`) are what it goes with.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jaxsparse as jsp


class GaLoreTest(absltest.TestCase):

  def test_pruned_weights_train_with_projected_moments(self):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {'up': {'kernel': draw(64, 128)}, 'down': {'kernel': draw(128, 64), 'bias': draw(64)}}
    x, y = draw(32, 64), draw(32, 64)
    fn = lambda p, x: jax.nn.relu(x @ p['up']['kernel']) @ p['down']['kernel'] + jnp.broadcast_to(
        p['down']['bias'], x.shape)
    loss = lambda p: jnp.square(fn(p, x) - y).mean()
    transform = jsp.at('.*kernel', jsp.nm(2, 4))
    tx, full = optax.contrib.galore(0.02, rank=8, update_proj_gap=10), optax.adam(0.02)
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(loss, tx, transform)
    losses = []
    for _ in range(30):
      ts, value, _ = step(ts)
      losses.append(float(value))
    self.assertLess(losses[-1], 0.6 * losses[0])
    zeros = np.asarray(transform.apply(ts.params, ts.state)['up']['kernel'] == 0)
    self.assertTrue((zeros.reshape(16, 4, 128).sum(1) == 2).all())
    # Two moments and a projection: (2 max + min) rank against 2 m n.
    self.assertLess(jsp.nbytes(ts.opt_state), 0.25 * jsp.nbytes(full.init(ts.params)))


if __name__ == '__main__':
  absltest.main()
