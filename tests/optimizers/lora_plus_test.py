"""LoRA+: the rates of the two factors, also by schedules, and nobody else's `b`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


class LoraPlusTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_rates(self, scheduled):
    params = {'dense': {'kernel': jnp.ones((4, 3))}, 'b': jnp.ones(3)}   # a bias called b
    transform = jsp.at('dense/kernel', jsp.dora(2))
    latents, _ = transform.init(params)
    rate = optax.linear_schedule(0.1, 0.0, 4) if scheduled else 0.1
    tx = jsp.lora_plus(optax.sgd, rate, ratio=8.0)
    opt_state = tx.init(latents)
    grads = jax.tree.map(jnp.ones_like, latents)
    for step in range(3):
      updates, opt_state = tx.update(grads, opt_state, latents)
      now = 0.1 * (1 - step / 4) if scheduled else 0.1
      kernel = updates['dense']['kernel']
      for x, expected in ((kernel.a, now), (kernel.magnitude, now), (kernel.b, 8 * now),
                          (updates['b'], now)):
        np.testing.assert_allclose(x, -expected, rtol=1e-5)

  def test_bad(self):
    with self.assertRaisesRegex(ValueError, 'found no adapter'):
      jsp.lora_plus(optax.sgd, 0.1).init({'b': jnp.ones(3)})
    for ratio in (0, -1.0, True, 'x'):
      with self.assertRaisesRegex(ValueError, 'ratio must be a positive number'):
        jsp.lora_plus(optax.sgd, 0.1, ratio=ratio)


if __name__ == '__main__':
  absltest.main()
