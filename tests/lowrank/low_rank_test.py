"""Factors of a weight, against numpy's SVD."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def normal(*shape, dtype='float32'):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def best(w, rank):
  """Eckart and Young."""
  u, s, v = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
  return (u[:, :rank] * s[:rank]) @ v[:rank]


def effective(transform, w, **extra):
  return jsp.densify(transform.apply(*transform.init({'kernel': w}, **extra)))['kernel']


class LowRankTest(parameterized.TestCase):

  @parameterized.parameters((1, 1), (3, 3), (0.5, 3), (0.01, 1), (1.0, 6), (99, 6))
  def test_best_of_its_rank(self, rank, columns):
    w = normal(9, 6)
    params, state = jsp.low_rank(rank).init({'kernel': w})
    chex.assert_shape([params['kernel'].u, params['kernel'].v], [(9, columns), (columns, 6)])
    np.testing.assert_allclose(effective(jsp.low_rank(rank), w), best(w, columns), atol=1e-5)
    # The singular values are shared evenly.
    gram = lambda m: np.asarray(m) @ np.asarray(m).T
    np.testing.assert_allclose(gram(params['kernel'].u.T), gram(params['kernel'].v), atol=1e-4)

  def test_a_matrix_of_that_rank_is_kept(self):
    w = normal(8, 1) * jnp.ones((1, 5))
    np.testing.assert_allclose(effective(jsp.low_rank(1), w), w, atol=1e-5)

  @parameterized.named_parameters(
      dict(testcase_name='out_in', shape=(5, 7), roles=((1,), (0,)), u=(7, 2), v=(2, 5)),
      dict(testcase_name='square', shape=(6, 6), roles=((1,), (0,)), u=(6, 2), v=(2, 6)),
      dict(testcase_name='experts', shape=(4, 3, 5), roles=((0,), (2,)), u=(3, 4, 2), v=(3, 2, 5)),
      dict(testcase_name='oihw', shape=(5, 4, 3, 2), roles=((1, 2, 3), (0,)), u=(24, 2), v=(2, 5)))
  def test_roles(self, shape, roles, u, v):
    w = normal(*shape)
    axes = {'kernel': jsp.DimensionNumbers(*roles)}
    params, state = jsp.low_rank(2).init({'kernel': w}, axes=axes)
    chex.assert_shape([params['kernel'].u, params['kernel'].v], [u, v])
    packed = jsp.low_rank(2).pack(params, state)['kernel']
    np.testing.assert_allclose(packed.todense(), effective(jsp.low_rank(2), w, axes=axes))
    matrix = packed.layout.to_matrix(w)
    for i in np.ndindex(matrix.shape[:-2]):
      np.testing.assert_allclose(packed.dense_matrix()[i], best(matrix[i], 2), atol=1e-5)

  def test_full_rank_of_a_square_permuted_weight(self):
    w = normal(4, 4)   # u, v and the weight have one shape: none may be taken for another
    found = effective(jsp.low_rank(4), w, axes={'kernel': jsp.DimensionNumbers((1,), (0,))})
    np.testing.assert_allclose(found, w, atol=1e-5)

  @parameterized.parameters('bfloat16', 'float16')
  def test_half_precision(self, dtype):
    w = normal(6, 5, dtype=dtype)
    params, _ = jsp.low_rank(5).init({'kernel': w})
    chex.assert_type(list(params['kernel']), dtype)
    out = effective(jsp.low_rank(5), w)
    chex.assert_type(out, dtype)
    np.testing.assert_allclose(np.asarray(out, np.float32), np.asarray(w, np.float32), atol=0.05)

  def test_ranks_by_name(self):
    params = {'a': normal(4, 4), 'b': normal(4, 4), 'c': normal(4, 4)}
    latents, state = jsp.low_rank({'a': 2, 'b': 0.25}).init(params)
    self.assertEqual((latents['a'].u.shape, latents['b'].u.shape), ((4, 2), (4, 1)))
    self.assertIs(latents['c'], params['c'])

  def test_gradients(self):
    transform = jsp.low_rank(2)
    params, state = transform.init({'kernel': normal(5, 4)})
    upstream = np.asarray(normal(5, 4))
    loss = lambda p: jnp.sum(jsp.densify(transform.apply(p, state))['kernel'] * upstream)
    grads = jax.grad(loss)(params)['kernel']
    np.testing.assert_allclose(grads.u, upstream @ np.asarray(params['kernel'].v).T, rtol=1e-5)
    np.testing.assert_allclose(grads.v, np.asarray(params['kernel'].u).T @ upstream, rtol=1e-5)

  def test_discarded_energy_is_the_tail_of_the_squared_singular_values(self):
    for shape in ((40, 30), (3, 3, 8, 16), (2, 20, 31), (300, 280)):
      w = normal(*shape)
      axes = {'kernel': jsp.DimensionNumbers((0, 1, 2), (3,)) if len(shape) == 4 else
              jsp.DimensionNumbers((len(shape) - 2,), (len(shape) - 1,))}
      lost = np.asarray(w, np.float64) - np.asarray(effective(jsp.low_rank(5), w, axes=axes))
      matrix = np.asarray(w, np.float64).reshape(-1, shape[-1]) if len(shape) == 4 else np.asarray(
          w, np.float64)
      tail = (np.linalg.svd(matrix, compute_uv=False)[..., 5:] ** 2).sum()
      self.assertAlmostEqual((lost**2).sum() / tail, 1.0, delta=1e-5)

  @parameterized.parameters((0, 2), (1, 2), (3, 3))
  def test_directions_without_energy_are_trainable(self, energy, rank):
    w = normal(8, energy) @ normal(energy, 5) if energy else jnp.zeros((8, 5))
    params, state = jsp.low_rank(rank).init({'kernel': w})
    np.testing.assert_allclose(effective(jsp.low_rank(rank), w), w, atol=1e-5)
    view = lambda p: jsp.densify(jsp.low_rank(rank).apply(p, state))['kernel']
    loss = lambda p: (view(p) * normal(8, 5)).sum()
    grads = jax.grad(loss)(params)['kernel']
    self.assertTrue((jnp.abs(grads.u).sum(0) > 1e-3).all())   # every column can move

  @parameterized.parameters((3, 4, 4), (0.3, 4, 4), (6, 4, 6), (5, 1, 5))
  def test_rounded_to_a_multiple(self, rank, multiple, columns):
    params, _ = jsp.low_rank(rank, multiple=multiple).init({'kernel': normal(9, 6)})
    self.assertEqual(params['kernel'].u.shape[1], columns)

  def test_normalized_factors(self):
    transform, w = jsp.low_rank(3, normalize=True), normal(9, 6)
    params, state = transform.init({'kernel': w})
    np.testing.assert_allclose(effective(transform, w), best(w, 3), atol=1e-5)
    factors = params['kernel']
    longer = {'kernel': factors._replace(u=factors.u * jnp.array([[2.0, 5.0, 0.1]]))}
    np.testing.assert_allclose(jsp.densify(transform.apply(longer, state))['kernel'], best(w, 3),
                               atol=1e-5)
    self.assertEqual(jsp.spell(transform), 'low_rank(3, normalize=True)')
    zero, _ = transform.init({'kernel': jnp.zeros((4, 4))})
    self.assertTrue(all(jnp.isfinite(x).all() for x in jax.tree.leaves(zero)))

  def test_what_is_no_matrix_passes_through_and_what_is_not_finite_is_refused(self):
    params = {'bias': normal(5), 'empty': jnp.zeros((0, 4)), 'steps': jnp.arange(4).reshape(2, 2)}
    latents, _ = jsp.low_rank(2).init(params)
    for name, x in params.items():
      self.assertIs(latents[name], x)
    with self.assertRaisesRegex(ValueError, "'bias' matches no weight"):
      jsp.low_rank({'bias': 1}).init(params | {'w': normal(3, 3)})
    with self.assertRaisesRegex(ValueError, 'kernel: 1 of 20 values are NaN or infinite'):
      jsp.low_rank(2).init({'kernel': normal(5, 4).at[0, 0].set(jnp.nan)})

  def test_no_names_leave_everything(self):
    w = normal(4, 4)
    self.assertIs(jsp.low_rank({}).init({'a': w})[0]['a'], w)

  @parameterized.parameters(0, -1, 0.0, 1.5, True, '4', None)
  def test_bad(self, rank):
    with self.assertRaisesRegex(ValueError, 'rank must be a positive integer or a fraction'):
      jsp.low_rank(rank)

  def test_bad_names(self):
    with self.assertRaisesRegex(ValueError, "'z' matches no weight"):
      jsp.low_rank({'z': 2}).init({'a': normal(4, 4)})
    with self.assertRaisesRegex(ValueError, 'a: rank 5 was asked for, but the full rank'):
      jsp.low_rank({'a': 5}).init({'a': normal(4, 4)})


  def test_factors_in_fewer_bits(self):
    """A stage to the left acts on factors and packs them: bytes fall, dispatch multiplies by them.
    """
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {'stack': draw(2, 32, 32), 'conv': draw(3, 3, 4, 16), 'table': draw(64, 32)}
    axes, x = {'conv': jsp.DimensionNumbers((0, 1, 2), (3,))}, draw(8, 32)

    def fn(p, x):
      y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['stack'])
      image = jax.lax.conv_general_dilated(x.reshape(1, 8, 8, 4), p['conv'], (1, 1), 'SAME',
                                           dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      return y + jnp.take(p['table'], jnp.arange(8), axis=0), image

    def views(transform, params):
      latents, state = transform.init(params, axes=axes)
      dense = jsp.densify(transform.apply(latents, state))
      packed = transform.pack(latents, state)
      return dense, jsp.densify(packed), fn(dense, x), jsp.dispatch(fn)(packed, x)

    entries = 8 * (2 * (32 + 32) + (36 + 16) + (64 + 32))
    scales = 4 * (2 * (8 + 32) + (8 + 16) + (8 + 32))
    for text, size in (("fake_quantize('int8') | low_rank(8)", entries + scales),
                       ("quantize('int4') | low_rank(8)", entries / 2 + scales),
                       ("low_rank(8) | fake_quantize('int8')",
                        2 * 32 * 32 + 576 + 64 * 32 + 4 * (2 * 32 + 16 + 32)),
                       ("fake_quantize('int8') | low_rank(8, normalize=True)", None)):
      transform = jsp.parse(text)
      dense, stored, expected, found = jax.jit(views, static_argnums=0)(transform, params)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), dense, stored)
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), expected, found)
      packed = jax.eval_shape(lambda p, t=transform: t.pack(*t.init(p, axes=axes)), params)
      if size is not None:
        self.assertEqual(jsp.nbytes(packed), size)

  def test_bad_multiple(self):
    with self.assertRaisesRegex(ValueError, 'multiple must be a positive integer, got 0'):
      jsp.low_rank(2, multiple=0)


if __name__ == '__main__':
  absltest.main()
