"""Gradual pruning: who goes, when, and that the target is reached."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def kernel(*shape, seed=0):
  return {'kernel': jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)}


def kept(state):
  return int(sum(mask.sum() for mask in jsp.masks(state).values()))


def run(transform, params, steps):
  """Masks kept after init and after each of `steps` updates."""
  params, state = transform.init(params)
  update = jax.jit(lambda s: transform.update(params, s))
  counts = [kept(state)]
  for _ in range(steps):
    state = update(state)
    counts.append(kept(state))
  return counts, state


class PruneTest(parameterized.TestCase):

  def test_by_eye(self):
    params = {'kernel': jnp.asarray([[1.0, -4.0], [3.0, 2.0]])}
    for transform, expected in (
        (jsp.magnitude(0.5), [[0, -4], [3, 0]]), (jsp.nm(1, 2), [[0, -4], [3, 0]]),
        (jsp.magnitude(0.75), [[0, -4], [0, 0]]), (jsp.magnitude(0.0), [[1, -4], [3, 2]]),
        (jsp.magnitude(0.5, pattern=jsp.channel()), [[0, -4], [0, 2]]),
        (jsp.magnitude(0.5, pattern=jsp.block(1, 2)), [[1, -4], [0, 0]])):
      self.assertEqual(transform.apply(*transform.init(params))['kernel'].tolist(), expected)

  @parameterized.parameters((3, 10, 4), (2, 11, 100), (0, 1, 1))
  def test_the_target_is_reached_at_the_end(self, start, end, every):
    for make, shape in ((jsp.cubic, lambda x: x**3), (jsp.linear, lambda x: x)):
      schedule = make(0.9, start=start, end=end, every=every)
      counts, _ = run(jsp.magnitude(schedule), kernel(10, 10), end + 2)
      due = sorted({*range(start, end + 1, every), end})
      expected, now = [100], 100
      for count in range(end + 2):
        if count in due:
          now = 100 - round(100 * (0.9 - 0.9 * shape(1 - (count - start) / (end - start))))
        expected.append(now)
      self.assertEqual(counts, expected)
      self.assertEqual(counts[-1], 10)

  def test_at_step(self):
    counts, _ = run(jsp.magnitude(jsp.at_step(2, 0.5)), kernel(4, 5), 4)
    self.assertEqual(counts, [20, 20, 20, 10, 10])

  def test_pruned_stays_pruned_whatever_its_latent_becomes(self):
    transform = jsp.magnitude(jsp.linear(0.75, end=2, every=1, initial=0.5))
    params, state = transform.init({'kernel': jnp.asarray([[4.0, 3.0], [2.0, 1.0]])})
    grown = {'kernel': jnp.asarray([[4.0, 3.0], [90.0, 90.0]])}
    for expected in ([[1, 1], [0, 0]], [[1, 1], [0, 0]], [[1, 0], [0, 0]]):
      state = transform.update(grown, state)
      self.assertEqual(jsp.masks(state)['kernel'].astype(int).tolist(), expected)

  def test_refresh_false_keeps_and_true_renews(self):
    transform = jsp.magnitude(jsp.linear(0.5, end=1, every=1))
    params, state = transform.init(kernel(4, 4))
    for _ in range(3):
      state = transform.update(params, state, refresh=False)
    self.assertEqual((kept(state), int(state.count)), (16, 3))
    self.assertEqual(kept(transform.update(params, state, refresh=True)), 8)

  def test_pooled_threshold(self):
    params = {'a/kernel': jnp.asarray([[9.0, 8.0], [7.0, 1.0]]),
              'b/kernel': jnp.asarray([[2.0, 3.0]])}
    _, state = jsp.magnitude(0.5, distribution=jsp.pooled).init(params)
    self.assertEqual([m.astype(int).tolist() for m in jsp.masks(state).values()],
                     [[[1, 1], [1, 0]], [[0, 0]]])
    self.assertEqual(jsp.sparsity(state), 0.5)

  def test_erk_spares_the_small(self):
    params = {'a/kernel': kernel(4, 4)['kernel'], 'b/kernel': kernel(40, 40)['kernel']}
    _, state = jsp.magnitude(0.8, distribution=jsp.erk).init(params)
    masks = jsp.masks(state)
    self.assertTrue(masks['a/kernel'].all())
    # Of 16 and 1,600 at most 12 and 1,280 whole entries are zeros.
    self.assertEqual(int(masks['b/kernel'].sum()), 4 + 320 - 16)

  def test_own_criterion_and_gradients(self):
    params, grads = kernel(3, 4), kernel(3, 4, seed=1)
    transform = jsp.prune(jsp.criteria.saliency, schedule=0.5)
    _, state = transform.init(params, grads=grads)
    scores = np.abs(np.asarray(params['kernel']) * np.asarray(grads['kernel']))
    expected = scores >= np.sort(scores.ravel())[6]
    np.testing.assert_array_equal(jsp.masks(state)['kernel'], expected)
    with self.assertRaisesRegex(ValueError, 'saliency needs gradients'):
      transform.init(params)

  def test_a_masked_nan_does_not_survive(self):
    transform = jsp.magnitude(0.5)
    params, state = transform.init({'kernel': jnp.asarray([[1.0, 2.0]])})
    out = transform.apply({'kernel': jnp.asarray([[jnp.nan, 2.0]])}, state)
    self.assertEqual(out['kernel'].tolist(), [[0.0, 2.0]])

  @parameterized.parameters(1.0, -0.1, 2, '0.5', True)
  def test_bad_sparsity(self, sparsity):
    with self.assertRaisesRegex(ValueError, r'in \[0, 1\), got'):
      jsp.magnitude(sparsity)

  def test_conflicting_targets(self):
    with self.assertRaisesRegex(ValueError, r'n_m\(2, 4\) has sparsity 0.5, but 0.9'):
      jsp.magnitude(0.9, pattern=jsp.n_m(2, 4))
    with self.assertRaisesRegex(ValueError, 'pooled ranks single entries'):
      jsp.magnitude(0.5, pattern=jsp.channel(), distribution=jsp.pooled)


if __name__ == '__main__':
  absltest.main()
