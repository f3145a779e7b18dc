"""The experiments' optimizer takes the latents of every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from experiments import optimizers

_TRANSFORMS = (
  'identity()',
  "at('kernel', nm(2, 4))",
  "at('kernel', rigl(0.9, every=1))",
  "at('kernel', lsq(bits=4))",
  "at('kernel', fake_quantize('int8'))",
  "at('kernel', low_rank(2))",
  "at('kernel', lora(2, base=nf4(group=8)))",
  "at('kernel', clustered(4))",
)


@pytest.mark.parametrize('spelled', _TRANSFORMS)
@pytest.mark.sampled(4)
def test_a_step_of_any_transform_moves_what_it_can(spelled):
  transform, tx = jsp.parse(spelled), optimizers.warm_adamw(0.1, steps=3)
  params = {'kernel': jax.random.normal(jax.random.key(0), (8, 8)), 'bias': jnp.zeros(8)}
  x = jax.random.normal(jax.random.key(1), (4, 8))
  loss = lambda p: jnp.square(x @ p['kernel'] + jnp.broadcast_to(p['bias'], x.shape) - 1).mean()
  ts, losses = jsp.TrainState.create(transform, tx, params), []
  step = jsp.train_step(loss, tx, transform)
  for _ in range(4):
    ts, value, _ = step(ts)
    losses.append(float(value))
  assert np.isfinite(losses).all() and losses[-1] < losses[1]


def test_a_step_size_learns_a_tenth_as_fast_as_a_weight():
  transform, tx = jsp.lsq(bits=4), optimizers.warm_adamw(0.1, steps=20)
  params, _ = transform.init({'kernel': jnp.ones((4, 4)), 'bias': jnp.ones(4)})
  opt_state = tx.init(params)
  for _ in range(2):
    updates, opt_state = tx.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
  kernel = updates['kernel']
  np.testing.assert_allclose(kernel.w, 10 * float(kernel.step_size.mean()), rtol=1e-3)


def test_without_steps_there_are_no_moments():
  assert not jax.tree.leaves(optimizers.warm_adamw(0.1, steps=0).init({'kernel': jnp.ones(4)}))
