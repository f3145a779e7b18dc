"""Distillation against numpy, and as the loss of a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.training import distill


def logits(params, x):
  return jnp.tanh(x @ params['a']) @ params['b']


def model(seed=0):
  keys = jax.random.split(jax.random.key(seed))
  return {'a': jax.random.normal(keys[0], (6, 16)), 'b': jax.random.normal(keys[1], (16, 4))}


def log_softmax(x):
  x = np.asarray(x, np.float64)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


class DistillationTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 0.0), (4.0, 0.9), (2.0, 1.0))
  def test_against_numpy(self, temperature, alpha):
    student, teacher = model(), model(1)
    x, labels = jax.random.normal(jax.random.key(2), (5, 6)), np.array([0, 1, 2, 3, 0])
    z, v = (np.asarray(logits(p, x), np.float64) for p in (student, teacher))
    p, q = np.exp(log_softmax(v / temperature)), log_softmax(z / temperature)
    soft = (p * (np.log(p) - q)).sum(-1) * temperature**2
    hard = -log_softmax(z)[np.arange(5), labels]
    loss = jsp.distillation(logits, temperature=temperature, alpha=alpha)
    np.testing.assert_allclose(loss(student, teacher, x, labels),
                               (alpha * soft + (1 - alpha) * hard).mean(), rtol=1e-4)

  def test_gradient_at_high_temperature_is_that_of_matching_logits(self):
    # Hinton et al., section 2.1: for zero-mean logits, T^2 dC/dz -> (z - v) / N as T grows.
    z, v = jnp.array([1.0, -1.0, 0.0]), jnp.array([-0.5, 0.25, 0.25])
    grad = jax.grad(lambda z: distill.soft_targets(z, v, temperature=1_000.0))(z)
    np.testing.assert_allclose(grad, (z - v) / 3, rtol=5e-2, atol=5e-3)

  def test_no_gradient_reaches_the_teacher(self):
    x, labels = jnp.ones((2, 6)), jnp.zeros(2, int)
    grads = jax.grad(jsp.distillation(logits), argnums=1)(model(), model(1), x, labels)
    self.assertEqual(sum(float(jnp.abs(g).sum()) for g in grads.values()), 0)

  def test_a_pruned_student_nears_its_teacher(self):
    teacher, transform, tx = model(), jsp.magnitude(0.5), optax.adam(1e-2)
    x = jax.random.normal(jax.random.key(2), (64, 6))
    labels = logits(teacher, x).argmax(-1)
    ts = jsp.TrainState.create(transform, tx, teacher)
    step = jsp.train_step(jsp.distillation(logits, alpha=1.0), tx, transform)
    losses = []
    for _ in range(60):
      ts, loss, _ = step(ts, teacher, x, labels)
      losses.append(float(loss))
    self.assertLess(losses[-1], 0.3 * losses[0])
    self.assertEqual(jsp.sparsity(ts.state), 0.5)

  def test_hidden_states(self):
    hidden = lambda p, x: {'one': x @ p['a'], 'two': jnp.tanh(x @ p['a']) @ p['b']}
    x = jnp.ones((2, 6))
    student, teacher = hidden(model(), x), hidden(model(1), x)
    wanted = np.mean([np.square(student[k] - teacher[k]).mean() for k in student])
    loss = jsp.hidden_distillation(hidden)
    np.testing.assert_allclose(loss(model(), model(1), x), wanted, rtol=1e-5)
    with self.assertRaisesRegex(ValueError, 'hidden states of student and teacher differ'):
      jsp.hidden_distillation(hidden, teacher_fn=lambda p, x: {'one': x})(model(), model(1), x)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'temperature'):
      jsp.distillation(logits, temperature=0.0)
    with self.assertRaisesRegex(ValueError, 'alpha'):
      jsp.distillation(logits, alpha=1.5)
    with self.assertRaisesRegex(ValueError, 'logits of student and teacher differ'):
      distill.soft_targets(jnp.ones((1, 2)), jnp.ones((1, 3)), temperature=1.0)


if __name__ == '__main__':
  absltest.main()
