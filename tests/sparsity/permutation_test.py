"""Orders of channels that let N:M keep more."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def kept(w, n, m, axis=-2):
  """Magnitude the largest n of every m consecutive entries along `axis` have together."""
  groups = np.moveaxis(np.abs(np.asarray(w, np.float64)), axis, -1)
  groups = groups.reshape(*groups.shape[:-1], -1, m)
  return np.sort(groups, -1)[..., m - n:].sum()


class PermutationTest(parameterized.TestCase):

  def test_finds_the_best_of_a_small_weight(self):
    for seed in range(5):
      w = np.random.default_rng(seed).normal(size=(6, 3))
      found = jsp.permute_for_nm(w, 1, 2)
      best = max(kept(w[list(order)], 1, 2) for order in itertools.permutations(range(6)))
      self.assertAlmostEqual(found.after, kept(w[found.order], 1, 2), places=4)
      self.assertGreaterEqual(found.after, 0.97 * best)

  @hypothesis.settings(max_examples=25)
  @hypothesis.given(groups=st.integers(1, 5), columns=st.integers(1, 5), m=st.integers(1, 5),
                    fill=st.sampled_from(['normal', 'ties', 'zeros']), data=st.data())
  def test_never_keeps_less_and_says_what_it_keeps(self, groups, columns, m, fill, data):
    n = data.draw(st.integers(1, m))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    shape = (groups * m, columns)
    w = {'normal': rng.normal(size=shape), 'ties': rng.integers(-1, 2, shape),
         'zeros': np.zeros(shape)}[fill].astype('f')
    found = jsp.permute_for_nm(w, n, m)
    self.assertEqual(sorted(found.order), list(range(groups * m)))
    self.assertGreaterEqual(found.after, found.before)
    np.testing.assert_allclose(found.before, kept(w, n, m), rtol=1e-6)
    np.testing.assert_allclose(found.after, kept(w[found.order], n, m), rtol=1e-6)
    np.testing.assert_array_equal(found.order, jsp.permute_for_nm(w, n, m).order)

  def test_no_swap_is_left_that_keeps_more(self):
    w = np.random.default_rng(0).normal(size=(12, 7))
    order = jsp.permute_for_nm(w, 2, 4).order
    here = kept(w[order], 2, 4)
    for i, j in itertools.combinations(range(12), 2):
      other = order.copy()
      other[[i, j]] = other[[j, i]]
      self.assertLessEqual(kept(w[other], 2, 4), here + 1e-4)

  def test_a_stack_and_a_middle_axis_share_an_order(self):
    w = np.random.default_rng(0).normal(size=(3, 8, 5))
    found = jsp.permute_for_nm(jnp.asarray(w, 'bfloat16'), 2, 4)
    exact = np.asarray(jnp.asarray(w, 'bfloat16'), 'f')
    np.testing.assert_allclose(found.after, kept(exact[:, found.order], 2, 4), rtol=1e-6)
    self.assertGreater(found.after, found.before)
    first = jsp.permute_for_nm(w[0].T, 2, 4, axis=1)
    np.testing.assert_array_equal(first.order, jsp.permute_for_nm(w[0], 2, 4).order)

  def test_a_network_computes_the_same(self):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), 'float32')
    params = {'a': {'kernel': draw(5, 16), 'bias': draw(16)},
              'b': {'kernel': draw(16, 12), 'bias': draw(12)}}
    def run(p, x):
      hidden = jax.nn.relu(x @ p['a']['kernel'] + p['a']['bias'][None])
      return hidden @ p['b']['kernel'] + p['b']['bias'][None]
    found = jsp.permute_for_nm(params['b']['kernel'], 2, 4)
    moved = jsp.permuted(params, found.order, {'a/kernel': 1, 'a/bias': 0, 'b/kernel': 0})
    x = draw(7, 5)
    np.testing.assert_allclose(run(moved, x), run(params, x), rtol=1e-4, atol=1e-5)
    transform = jsp.at('b/kernel', jsp.nm(2, 4))
    magnitude = lambda p: float(jnp.abs(transform.apply(*transform.init(p))['b']['kernel']).sum())
    np.testing.assert_allclose(magnitude(params), found.before, rtol=1e-5)
    np.testing.assert_allclose(magnitude(moved), found.after, rtol=1e-5)
    self.assertGreater(found.after, 1.02 * found.before)

  @parameterized.named_parameters(
      dict(testcase_name='m', make=lambda: jsp.permute_for_nm(np.ones((6, 2)), 2, 4),
           message='divisible by m=4'),
      dict(testcase_name='nan', make=lambda: jsp.permute_for_nm(np.full((4, 2), np.nan), 2, 4),
           message='NaN'),
      dict(testcase_name='order', make=lambda: jsp.permuted({}, [0, 0], {}),
           message='each of 0 to 1 once'),
      dict(testcase_name='name', make=lambda: jsp.permuted({'a': np.ones(2)}, [1, 0], {'b': 0}),
           message="'b' matches no weight"),
      dict(testcase_name='size', make=lambda: jsp.permuted({'a': np.ones(3)}, [1, 0], {'a': 0}),
           message='a: the order is of 2 channels'))
  def test_bad(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
