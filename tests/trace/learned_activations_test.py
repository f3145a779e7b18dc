"""Trained activation ranges: values and gradients against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def forward(x, step, offset, low, high):
  code = np.clip((x - offset) / step, low, high)
  return np.rint(code) * step + offset, code


class LearnedActivationsTest(parameterized.TestCase):

  @parameterized.parameters('lsq', 'lsq+', 'pact', 'lsq signed')
  def test_values_and_gradients_of_the_papers(self, method):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 6)).astype(np.float32)
    x = np.abs(x) if method in ('lsq', 'pact') else x
    w = rng.normal(size=(6, 3)).astype(np.float32)
    fn = lambda p, x: x @ p['w']
    ranges = jsp.activation_ranges(fn, {'w': w}, [x], bits=3, method=method.split()[0])
    shrunk = jax.tree.map(lambda a: a * 0.6, ranges)   # so that something is clipped
    g = rng.normal(size=(32, 3)).astype(np.float32)
    run = jsp.learned_activations(fn)
    loss = lambda r, x: (run({'w': w}, r, x) * g).sum()
    (grads, gx), out = jax.grad(loss, (0, 1))(shrunk, x), run({'w': w}, shrunk, x)
    found = shrunk['w']
    step = float(found.step_size)
    offset = float(found.offset) if found.offset is not None else 0.0
    value, code = forward(x.astype(np.float64), step, offset, found.low, found.high)
    np.testing.assert_allclose(out, value @ w, rtol=1e-4, atol=1e-5)
    upstream = g @ w.T
    inside = ((x - offset) / step >= found.low) & ((x - offset) / step <= found.high)
    np.testing.assert_allclose(gx, np.where(inside, upstream, 0), rtol=1e-4, atol=1e-5)
    if method == 'pact':   # equation 3, of a = high * step
      expected = (upstream * (x >= found.high * step)).sum() * found.high
    else:                  # LSQ's equation 3
      slope = np.where(inside, np.rint(code) - (x - offset) / step, code)
      expected = (upstream * slope).sum() / np.sqrt(x.size * found.high)
    np.testing.assert_allclose(grads['w'].step_size, expected, rtol=2e-3, atol=1e-4)
    if method == 'lsq+':   # equation 6
      expected = (upstream * ~inside).sum() / np.sqrt(x.size * found.high)
      np.testing.assert_allclose(grads['w'].offset, expected, rtol=1e-3, atol=1e-4)

  def test_starts_that_span_what_was_met(self):
    x = jnp.asarray([[-1.0, 3.0], [0.5, 2.0]])
    fn = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
    params = {'a': jnp.eye(2), 'b': jnp.eye(2)}
    made = jsp.activation_ranges(fn, params, [x], bits=2)
    self.assertEqual((made['a'].low, made['a'].high), (-2, 1))
    self.assertEqual((made['b'].low, made['b'].high, float(made['b'].step_size)), (0, 3, 1.0))
    plus = jsp.activation_ranges(fn, params, [x], bits=2, method='lsq+')['a']
    np.testing.assert_allclose([plus.offset, plus.step_size], [-1, 4 / 3], rtol=1e-6)
    self.assertEqual(jax.tree.map(float, plus).high, 3)
    out = jsp.learned_activations(fn)(params, {'b': made['b']}, x)   # the others pass
    np.testing.assert_allclose(out, jnp.round(jax.nn.relu(x)), rtol=1e-6)
    bare = lambda w, x: x @ w   # a weight without a name
    ranges = jsp.activation_ranges(bare, jnp.eye(2), [x], bits=2)
    np.testing.assert_allclose(jsp.learned_activations(bare)(jnp.eye(2), ranges, x),
                               [[0, 3], [0, 3]])

  def test_bad(self):
    fn, params, x = lambda p, x: x @ p['w'], {'w': jnp.eye(2)}, -jnp.ones((1, 2))
    with self.assertRaisesRegex(ValueError, 'w: PACT clips at zero.*-1'):
      jsp.activation_ranges(fn, params, [x], method='pact')
    with self.assertRaisesRegex(ValueError, "one of lsq, lsq.*got 'lqs'"):
      jsp.activation_ranges(fn, params, [x], method='lqs')
    with self.assertRaisesRegex(ValueError, 'bits must be an integer from 2 to 8, got 1'):
      jsp.activation_ranges(fn, params, [x], bits=1)
    made = jsp.activation_ranges(fn, params, [x])
    with self.assertRaisesRegex(ValueError, 'v: no product with a weight of that name'):
      jsp.learned_activations(fn)(params, {'v': made['w']}, x)


if __name__ == '__main__':
  absltest.main()
