"""Training on stored blocks is masked training, to rounding, and compiles two programs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def loss_fn(params, x, y):
  h = jnp.maximum(x @ params['first']['kernel'] + params['first']['bias'][None], 0)
  return jnp.mean((h @ params['last']['kernel'] - y) ** 2)


def problem(dtype='float32'):
  rng = np.random.default_rng(0)
  make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  params = {'first': {'kernel': make(16, 24), 'bias': make(24)}, 'last': {'kernel': make(24, 8)}}
  return params, make(10, 16), make(10, 8)


def run(text, tx, steps, dense):
  transform = jsp.parse(text)
  params, x, y = problem()
  ts = jsp.TrainState.create(transform, tx, params)
  step = jsp.train_step(jsp.dispatch(loss_fn), tx, transform, dense=dense)
  losses = []
  for _ in range(steps):
    ts, loss, _ = step(ts, x, y)
    losses.append(float(loss))
  return transform, ts, losses, step


class PackedBlocksTest(parameterized.TestCase):

  @parameterized.parameters(
      ('rigl(0.5, every=3, end=9, pattern=balanced_blocks(4, 4))', 'adam'),
      ('sparse_evolution(0.75, every=2, end=9, pattern=balanced_blocks(4, 2))', 'momentum'))
  def test_trains_as_masks_do(self, text, optimizer):
    tx = optax.adam(0.05) if optimizer == 'adam' else optax.sgd(0.05, momentum=0.9)
    _, masked, expected, _ = run(text, tx, 12, dense=True)
    transform, packed, found, step = run(f'packed_blocks({text})', tx, 12, dense=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    chex.assert_trees_all_equal(jsp.masks(packed.state), jsp.masks(masked.state))
    dense = jsp.densify(transform.apply(packed.params, packed.state))
    chex.assert_trees_all_close(dense, masked.params, rtol=1e-3, atol=1e-4)
    # One program of each kind, whatever the masks became.
    self.assertLessEqual(step.compiled._cache_size(), 2)
    self.assertLess(jsp.nbytes(packed.params), jsp.nbytes(masked.params))
    for leaf in jax.tree.leaves(transform.pack(packed.params, packed.state),
                                is_leaf=jsp.is_format):
      if leaf.ndim == 2:
        self.assertIsInstance(leaf, jsp.formats.BlockArray)
        slots = leaf.kidx.shape[1]
        even = slots * leaf.kidx.shape[0] % (leaf.shape[0] // leaf.block[0]) == 0
        self.assertEqual(leaf.doubly_balanced, even)

  @parameterized.parameters(
      'rigl(0.5, every=3, end=9, pattern=balanced_blocks(4, 4))',
      'top_kast(0.75, backward=0.5, every=3, pattern=balanced_blocks(4, 4))')
  @pytest.mark.sampled(1)
  def test_bits_around_or_within_change_nothing(self, text):
    _, plain, expected, _ = run(f'packed_blocks({text})', optax.adam(0.05), 6, dense=False)
    for other in (f'packed_masks(packed_blocks({text}))', f'packed_blocks(packed_masks({text}))'):
      _, ts, found, _ = run(other, optax.adam(0.05), 6, dense=False)
      self.assertEqual(found, expected)
      chex.assert_trees_all_equal(ts.params, plain.params)
      chex.assert_trees_all_equal(jsp.masks(ts.state), jsp.masks(plain.state))

  def test_gradients_are_the_masked_dense_ones(self):
    params, x, y = problem()
    transform = jsp.packed_blocks(jsp.static(0.5, pattern=jsp.balanced_blocks(4, 4)))
    latents, state = transform.init(params)
    run = functools.partial(jsp.value_and_grad, jsp.dispatch(loss_fn), transform)
    loss, grads, _ = jax.jit(run(dense=False))(latents, state, x, y)
    dense_loss, dense_grads, effective = jax.jit(run(dense=True))(latents, state, x, y)
    np.testing.assert_allclose(loss, dense_loss, rtol=1e-6)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(dense_grads))
    chex.assert_trees_all_close(grads, dense_grads, atol=1e-5 * scale)
    self.assertEqual(effective['first']['kernel'].shape, (16, 24))

  def test_stacks_ragged_edges_and_what_does_not_pack(self):
    rng = np.random.default_rng(1)
    params = {'stack': jnp.asarray(rng.normal(size=(3, 10, 7)), jnp.bfloat16),
              'tiny': jnp.ones((2, 2)), 'bias': jnp.ones(3)}
    transform = jsp.packed_blocks(
        jsp.magnitude(0.6, pattern=jsp.balanced_blocks(4, 2, pad=True)))
    latents, state = transform.init(params)
    self.assertEqual(latents['tiny'].shape, (2, 2))
    dense = jsp.densify(transform.apply(latents, state))
    inner = jsp.magnitude(0.6, pattern=jsp.balanced_blocks(4, 2, pad=True))
    chex.assert_trees_all_equal(dense, inner.apply(*inner.init(params)))
    abstract = jax.eval_shape(transform.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract, (latents, state))
    self.assertEqual(len(jsp.plan(transform, params)), 3)

  def test_spelled(self):
    text = 'packed_blocks(rigl(0.75, pattern=balanced_blocks(2, 2)))'
    self.assertEqual(jsp.spell(jsp.parse(text)), text)

  @parameterized.parameters(
      ('packed_blocks(straight_through(0.75, pattern=balanced_blocks(2, 2)))', 'only sets'),
      ('packed_blocks(top_kast(0.75))', 'no weight packs'),
      ('packed_blocks(snfs(0.75, pattern=balanced_blocks(2, 2)))', 'kernel: .*momentum'),
      ('packed_blocks(magnitude(0.75))', 'no weight packs'),
      ('packed_blocks(magnitude(linear(0.75, end=3), pattern=balanced_blocks(2, 2)))',
       r'kernel: block columns keep \[8\] blocks at first and 2 in the end'))
  def test_bad(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.parse(text).init({'kernel': jnp.ones((16, 8))})


if __name__ == '__main__':
  absltest.main()
