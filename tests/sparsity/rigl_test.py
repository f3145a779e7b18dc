"""RigL against a slow numpy version of algorithm 1."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from tests.sparsity import oracles


def drop_and_grow(w, mask, grad, fraction):
  return oracles.drop_and_grow(w, mask, np.abs(grad), fraction)


def start(transform, shape, dtype='float32', seed=0, **extra):
  rng = np.random.default_rng(seed)
  w = jnp.asarray(rng.normal(size=shape), dtype)
  grad = jnp.asarray(rng.normal(size=shape), dtype)
  params, state = transform.init({'kernel': w}, **extra)
  return params, state, {'kernel': grad}


def mask_of(state):
  return np.asarray(jsp.masks(state)['kernel'])


class RiglTest(parameterized.TestCase):

  @parameterized.parameters(
      (0.2, 0.3, 'float32'), (0.5, 1.0, 'bfloat16'), (0.9, 0.3, 'float32'), (0.9, 1.0, 'float32'))
  def test_one_update(self, sparsity, alpha, dtype):
    transform = jsp.rigl(sparsity, every=10, end=100, alpha=alpha)
    params, state, grads = start(transform, (7, 9), dtype)
    before = mask_of(state)
    self.assertEqual(before.sum(), 63 - round(63 * sparsity))
    after = mask_of(transform.update(params, state, grads=grads, refresh=True))
    as_numpy = lambda tree: np.asarray(tree['kernel'], np.float32)
    expected = drop_and_grow(as_numpy(params), before, as_numpy(grads), alpha)   # cos(0) = 1
    np.testing.assert_array_equal(after, expected)

  def test_whole_run(self):
    every, end, alpha = 3, 12, 0.6
    transform = jsp.rigl(0.7, every=every, end=end, alpha=alpha)
    params, state, _ = start(transform, (6, 10))
    update = jax.jit(transform.update)
    expected = mask_of(state)
    changed = []
    for count in range(16):
      grads = start(transform, (6, 10), seed=count + 1)[2]
      if count and count % every == 0 and count <= end:
        fraction = alpha / 2 * (1 + np.cos(np.pi * count / end))
        expected = drop_and_grow(np.asarray(params['kernel']), expected,
                                 np.asarray(grads['kernel']), fraction)
      previous, state = mask_of(state), update(params, state, grads=grads)
      np.testing.assert_array_equal(mask_of(state), expected, err_msg=f'count {count}')
      self.assertEqual(expected.sum(), 18)
      changed += [count] * bool((expected != previous).any())
      self.assertEqual(bool(transform.spec.due(count)),
                       bool(count) and count % every == 0 and count <= end)
    self.assertEqual(changed, [3, 6, 9])   # at `end` the cosine has reached zero
    self.assertEqual(update._cache_size(), 1)

  def test_by_hand(self):
    transform = jsp.rigl(0.5, every=1, end=10, alpha=0.5)
    params = {'kernel': jnp.asarray([[4.0, -3.0], [2.0, 1.0]])}
    _, state = transform.init(params)
    entry = state.weights['kernel']._replace(mask=jnp.asarray([[True, True], [False, False]]))
    state.weights['kernel'] = entry
    grads = {'kernel': jnp.asarray([[99.0, 1.0], [-5.0, 4.0]])}
    # Half of two is dropped: -3, the smaller; -5 is the largest gradient of what is not kept.
    new = transform.update(params, state, grads=grads, refresh=True)
    self.assertEqual(mask_of(new).tolist(), [[True, False], [True, False]])
    grads = {'kernel': jnp.asarray([[99.0, 6.0], [-5.0, 4.0]])}
    again = transform.update(params, state, grads=grads, refresh=True)
    self.assertEqual(mask_of(again).tolist(), [[True, True], [False, False]])   # -3 won its place

  def test_experts_compete_alone(self):
    transform = jsp.rigl(0.5, every=1, end=10)
    roles = {'kernel': jsp.DimensionNumbers((2,), (0,))}
    params, state, grads = start(transform, (4, 3, 5), axes=roles)
    new = mask_of(transform.update(params, state, grads=grads, refresh=True))
    self.assertEqual(new.sum((0, 2)).tolist(), [10, 10, 10])
    for i in range(3):
      # Row-major order of ties does not matter: there are none.
      expected = drop_and_grow(np.asarray(params['kernel'])[:, i], mask_of(state)[:, i],
                               np.asarray(grads['kernel'])[:, i], 0.3)
      np.testing.assert_array_equal(new[:, i], expected)

  @parameterized.parameters(0.0, 0.99)
  def test_edges_keep_their_count(self, sparsity):
    transform = jsp.rigl(sparsity, every=1, end=10, alpha=1.0)
    params, state, grads = start(transform, (3, 3))
    new = mask_of(transform.update(params, state, grads=grads, refresh=True))
    self.assertEqual(new.sum(), mask_of(state).sum())

  def test_seeds_and_names_differ(self):
    ones = {'a': jnp.ones((8, 8)), 'b': jnp.ones((8, 8))}
    first, second = (jsp.masks(jsp.rigl(0.5, seed=s).init(ones)[1]) for s in (0, 1))
    self.assertFalse((first['a'] == first['b']).all())
    self.assertFalse((first['a'] == second['a']).all())

  @parameterized.named_parameters(
      dict(testcase_name='alpha', kwargs=dict(alpha=1.5), message='alpha must be in'),
      dict(testcase_name='pooled', kwargs=dict(distribution=jsp.pooled), message='to pool'),
      dict(testcase_name='every', kwargs=dict(every=0), message='every must be'))
  def test_bad(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.rigl(0.5, **kwargs)

  def test_bad_schedule_and_no_gradients(self):
    with self.assertRaisesRegex(ValueError, r'one sparsity.*linear\(0.5'):
      jsp.rigl(jsp.linear(0.5, end=3))
    transform = jsp.rigl(0.5)
    with self.assertRaisesRegex(ValueError, 'expected update.*grads=effective_grads'):
      transform.update(*transform.init({'kernel': jnp.ones((2, 2))}))


if __name__ == '__main__':
  absltest.main()
