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

  @parameterized.parameters((jsp.over_rank, 8.0), (jsp.rslora, 16.0))
  def test_scalings(self, scaling, scale):
    w = normal(8, 5)
    transform = jsp.lora(4, alpha=32.0, scaling=scaling)
    params, state = transform.init({'kernel': w})
    a, b = params['kernel'].a, normal(4, 5, seed=1)
    found = effective(transform, {'kernel': jsp.Lora(a, b)}, state)
    np.testing.assert_allclose(found, w + scale * a @ b, rtol=1e-4, atol=1e-4)

  def test_pissa_trains_the_largest_triples(self):
    w = np.asarray(normal(3, 9, 6), np.float64)
    transform = jsp.lora(2, alpha=5.0, start=jsp.pissa())
    params, state = jax.jit(transform.init)({'kernel': jnp.asarray(w, jnp.float32)})
    np.testing.assert_allclose(effective(transform, params, state), w, atol=1e-5)
    u, s, v = np.linalg.svd(w, full_matrices=False)
    largest = (u[..., :2] * s[:, None, :2]) @ v[:, :2]
    found = 2.5 * np.asarray(params['kernel'].a @ params['kernel'].b)
    np.testing.assert_allclose(found, largest, atol=1e-4)
    base = jsp.unmerge(transform, params, state)['kernel']
    np.testing.assert_allclose(base, w - largest, atol=1e-4)

  def test_loftq_alternates(self):
    w = np.asarray(normal(32, 24), np.float64)
    grid = jsp.quantize('int3')
    encode = jax.jit(lambda m: jsp.densify(grid.apply(*grid.init({'kernel': m})))['kernel'])
    product, expected = np.zeros_like(w), []
    for _ in range(3):   # algorithm 1, restated
      q = np.asarray(encode(jnp.asarray(w - product, jnp.float32)), np.float64)
      u, s, v = np.linalg.svd(w - q, full_matrices=False)
      product = (u[:, :4] * s[:4]) @ v[:4]
      expected.append(q + product)
    errors = [np.linalg.norm(w - q)]
    for steps in (1, 3):
      transform = jsp.lora(4, base=grid, start=jsp.loftq(steps))
      found = effective(transform, *jax.jit(transform.init)({'kernel': jnp.asarray(w, 'float32')}))
      # A code may fall to the other side of a tie in float32.
      close = np.abs(np.asarray(found) - expected[steps - 1]) < 1e-3
      self.assertGreater(close.mean(), 0.99)
      errors.append(np.linalg.norm(np.asarray(found) - w))
    plain = np.linalg.norm(np.asarray(encode(jnp.asarray(w, 'float32'))) - w)
    self.assertLess(max(errors[1:]), plain)

  def test_dora(self):
    w = np.array(normal(8, 5))
    w[:, 1] = 0
    transform = jsp.dora(2, alpha=4.0)
    params, state = transform.init({'kernel': jnp.asarray(w)})
    np.testing.assert_allclose(effective(transform, params, state), w, rtol=1e-6)
    latents = params['kernel']
    np.testing.assert_allclose(latents.magnitude[0], np.linalg.norm(w, axis=0), rtol=1e-6)
    b, magnitude = normal(2, 5, seed=1), jnp.abs(normal(1, 5, seed=2))
    latents = latents._replace(b=b, magnitude=magnitude)
    magnitude = np.float64(magnitude)
    raw = np.float64(w) + 2.0 * np.float64(latents.a) @ np.float64(b)
    norms = np.linalg.norm(raw, axis=0)
    view = lambda latents: effective(transform, {'kernel': latents}, state)
    np.testing.assert_allclose(view(latents), magnitude * raw / norms, rtol=1e-4)
    grads = jax.grad(lambda latents: view(latents).sum())(latents)   # norms count as constants
    np.testing.assert_allclose(grads.magnitude[0], (raw / norms).sum(0), rtol=1e-3, atol=1e-5)
    expected = 2.0 * np.float64(latents.a).sum(0)[:, None] * (magnitude / norms)
    np.testing.assert_allclose(grads.b, expected, rtol=1e-3, atol=1e-4)

  def test_qlora_takes_half_a_byte_a_weight(self):
    w = {'kernel': normal(384, 384)}
    for base in (jsp.nf4(group=64, double_quantize=True),
                 jsp.quantize('int4', granularity='group', group=64, double_quantize=True)):
      transform = jsp.lora(8, base=base)
      packed = transform.pack(*jax.jit(transform.init)(w))['kernel']
      self.assertLess(packed.base.nbytes / 384 ** 2, 0.53)

  @parameterized.parameters(
      'lora(2, start=pissa())', 'dora(2)', "lora(2, base=quantize('int4'), start=loftq(2))")
  def test_hostile_weights(self, text):
    transform = jsp.parse(text)
    run = jax.jit(lambda w: (lambda p, s: (p, jsp.densify(transform.apply(p, s))))(
        *transform.init({'kernel': w})))
    for dtype in (jnp.float32, jnp.bfloat16):
      latents, out = run(jnp.zeros((3, 4, 6), dtype))
      chex.assert_tree_all_finite(latents)
      self.assertEqual({x.dtype for x in jax.tree.leaves((latents, out))}, {jnp.dtype(dtype)})
      self.assertEqual(float(jnp.abs(out['kernel']).max()), 0)
    for bad, message in ((jnp.full((4, 4), jnp.nan), 'kernel: 16 of 16 values are NaN'),
                         (jnp.full((4, 4), jnp.inf), 'kernel: 16 of 16 values are NaN or inf')):
      with self.assertRaisesRegex(ValueError, message):
        transform.init({'kernel': bad})
    for other in ({'bias': jnp.ones(4)}, {'kernel': jnp.ones((4, 0))}, {'step': jnp.arange(4)}):
      latents, state = transform.init(other)   # no matrix: left as it is
      chex.assert_trees_all_equal(transform.apply(latents, state), other)

  @parameterized.parameters(
      ({'start': jsp.pissa(), 'alpha': 0.0}, ValueError, 'alpha must be positive'),
      ({'start': 'pissa'}, TypeError, 'start must be gaussian'),
      ({'scaling': 'rslora'}, TypeError, 'scaling must be over_rank, rslora'),
      ({'alpha': float('nan')}, ValueError, 'alpha must be a finite number'))
  def test_bad_variants(self, arguments, error, message):
    for factory in (jsp.lora, jsp.dora):
      with self.assertRaisesRegex(error, message):
        factory(2, **arguments)

  @parameterized.parameters(0, 2.0, True)
  def test_bad(self, rank):
    with self.assertRaisesRegex(ValueError, 'rank must be a positive integer'):
      jsp.lora(rank)
    with self.assertRaisesRegex(TypeError, 'base must be a Transform'):
      jsp.lora(2, base='nf4()')


if __name__ == '__main__':
  absltest.main()
