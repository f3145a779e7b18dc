"""LoRA: a base that stays, a difference that is trained."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def effective(transform, params, state):
  return jsp.densify(transform.apply(params, state))['kernel']


class LoraTest(parameterized.TestCase):

  @parameterized.parameters(None, 'nm(2, 4)', "quantize('int4')", 'nf4(group=3)', 'clustered(4)',
                            'magnitude(0.5)')
  def test_fresh_is_its_base(self, base):
    w = {'kernel': normal(8, 5)}
    base = None if base is None else jsp.parse(base)
    transform = jsp.lora(2, base=base)
    params, state = transform.init(w)
    chex.assert_shape(list(params['kernel']), [(8, 2), (2, 5)])
    expected = w if base is None else jsp.densify(base.apply(*base.init(w)))
    np.testing.assert_array_equal(effective(transform, params, state), expected['kernel'])

  @parameterized.parameters((2, 16.0), (4, 1.0), (99, 16.0))
  def test_difference(self, rank, alpha):
    w = normal(8, 5)
    transform = jsp.lora(rank, alpha=alpha)
    params, state = transform.init({'kernel': w})
    r = min(rank, 5)
    a, b = params['kernel'].a, normal(r, 5, seed=1)
    params = {'kernel': params['kernel']._replace(b=b)}
    expected = np.asarray(w) + alpha / r * np.asarray(a) @ np.asarray(b)
    np.testing.assert_allclose(effective(transform, params, state), expected, atol=1e-4)
    packed = transform.pack(params, state)['kernel']
    np.testing.assert_allclose(packed.todense(), expected, atol=1e-4)
    np.testing.assert_allclose(packed.matmul(jnp.ones((1, 8)))[0], expected.sum(0), atol=1e-4)

  def test_the_base_gets_no_gradient_and_b_does(self):
    transform = jsp.lora(2, base=jsp.nf4())
    params, state = transform.init({'kernel': normal(8, 5)})
    grads = jax.grad(lambda p: jnp.sum(effective(transform, p, state)))(params)['kernel']
    expected = 8.0 * np.asarray(params['kernel'].a).sum(0)[:, None] * np.ones((2, 5))
    np.testing.assert_allclose(grads.b, expected, rtol=1e-5, atol=1e-5)
    self.assertEqual(float(jnp.abs(grads.a).max()), 0)   # b is zero
    new = transform.update(params, state, grads={'kernel': normal(8, 5)})
    chex.assert_trees_all_equal(new.weights, state.weights)

  def test_roles_reach_the_base(self):
    # [in, expert, out]: the base must prune along axis 0.
    w = normal(8, 3, 5)
    transform = jsp.lora(2, base=jsp.nm(2, 4))
    params, state = transform.init({'kernel': w}, axes={'kernel': jsp.DimensionNumbers((0,), (2,))})
    chex.assert_shape(list(params['kernel']), [(3, 8, 2), (3, 2, 5)])
    zeros = np.asarray(effective(transform, params, state) == 0)
    self.assertTrue((zeros.reshape(2, 4, 3, 5).sum(1) == 2).all())

  def test_factors_or_base_are_pruned(self):
    w = {'kernel': normal(8, 8)}
    params, state = jsp.parse('nm(2, 4) | lora(4)').init(w)
    self.assertEqual(sorted(jsp.masks(state)), ['kernel/a', 'kernel/b'])
    np.testing.assert_array_equal(effective(jsp.parse('nm(2, 4) | lora(4)'), params, state),
                                  w['kernel'])

  def test_seed(self):
    a = lambda seed: jsp.lora(2, seed=seed).init({'kernel': normal(8, 5)})[0]['kernel'].a
    self.assertTrue((a(0) == a(0)).all())
    self.assertFalse((a(0) == a(1)).any())

  def test_qlora_bytes(self):
    transform = jsp.lora(2, base=jsp.nf4(group=4))
    packed = transform.pack(*transform.init({'kernel': normal(8, 5)}))
    self.assertEqual(jsp.nbytes(packed), 4 * 5 + 2 * 5 * 4 + (8 * 2 + 2 * 5) * 4)

  @parameterized.parameters(0, 2.0, True)
  def test_bad(self, rank):
    with self.assertRaisesRegex(ValueError, 'rank must be a positive integer'):
      jsp.lora(rank)
    with self.assertRaisesRegex(TypeError, 'base must be a Transform'):
      jsp.lora(2, base='nf4()')


if __name__ == '__main__':
  absltest.main()
