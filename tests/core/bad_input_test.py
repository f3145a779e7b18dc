"""Bad input raises a ValueError that names the weight or the word, what was found and expected."""

import jax
import jax.numpy as jnp
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

PARAMS = {'layer0': {'kernel': jnp.ones((30, 8)), 'bias': jnp.ones(8)},
          'head': {'kernel': jnp.ones((8, 4))}}


class InitTest(parameterized.TestCase):

  @parameterized.parameters(
      ('nm(2, 4)', r'layer0/kernel: the reduction axis of size 30 .*divisible by m=4; the nearest '
                   r'm that divides it is 3'),
      ('magnitude(0.5, pattern=block(4, 4))', r'layer0/kernel: the reduction axis of size 30'),
      ('magnitude(0.5, pattern=block(5, 3))', r'head/kernel: the reduction axis of size 8'),
      ("at('(.*/)?kernal', nm(2, 4))", r"kernal' matches no weight.*layer0/bias, layer0/kernel"),
      ("at('.*bias', nm(2, 4))", r'expected floating arrays of rank 2 or more, found layer0/bias'),
      ("rules([('head/kernel', nm(2, 4))])", r'No rule covers layer0/kernel'),
      ("rules([('tail', nm(2, 4)), ('.*', identity())])", r"'tail' matches no weight"),
      ("low_rank({'layer9/kernel': 4})", r"'layer9/kernel' matches no weight"),
      ("low_rank({'head/kernel': 9})", r'head/kernel: rank 9 .* full rank .* is 4'),
  )
  def test_says_what_is_wrong(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.parse(text).init(PARAMS)
    with self.assertRaisesRegex(ValueError, message):
      jsp.plan(jsp.parse(text), PARAMS)

  @parameterized.parameters('magnitude(0.5)', "fake_quantize('int8')", 'clustered(4)',
                            'low_rank(2)')
  def test_a_nan_weight(self, text):
    params = PARAMS | {'head': {'kernel': jnp.ones((8, 4)).at[1, 2].set(jnp.nan)}}
    with self.assertRaisesRegex(ValueError, 'head/kernel: 1 of 32 values are NaN or infinite'):
      jsp.parse(text).init(params)

  def test_two_leaves_with_one_name(self):
    with self.assertRaisesRegex(ValueError, "'a/b'"):
      jsp.nm(2, 4).init({'a/b': jnp.ones((4, 4)), 'a': {'b': jnp.ones((4, 4))}})

  def test_saliency_without_gradients(self):
    with self.assertRaisesRegex(ValueError, 'saliency needs gradients'):
      jsp.prune(jsp.criteria.saliency, schedule=0.5).init(PARAMS)

  @parameterized.parameters('apply', 'pack', 'update')
  def test_params_that_do_not_match_the_state(self, function):
    transform = jsp.parse("at('.*kernel', magnitude(cubic(0.5, end=9)) | fake_quantize('int8'))")
    _, state = transform.init(PARAMS)
    run = getattr(transform, function)
    with self.assertRaisesRegex(ValueError, 'head/kernel not found'):
      run({'layer0': PARAMS['layer0']}, state)
    with self.assertRaisesRegex(ValueError, r'head/kernel: .*found an array of shape '
                                            r'\(4, 4\), expected '
                                            r'an array of shape \(8, 4\)'):
      run(PARAMS | {'head': {'kernel': jnp.ones((4, 4))}}, state)

  @parameterized.parameters('lsq(4)', 'lora(2)', 'low_rank(2)', 'clustered(4)', 'nf4()')
  def test_plain_arrays_where_latents_should_be(self, text):
    transform = jsp.parse(text)
    _, state = transform.init(PARAMS)
    with self.assertRaisesRegex(ValueError, '(head|layer0)/kernel'):
      transform.apply(PARAMS, state)

  def test_a_state_of_another_transform(self):
    chain = jsp.parse("nm(2, 4) | fake_quantize('int8')")
    params = {'kernel': jnp.ones((8, 4))}
    _, state = jsp.nm(2, 4).init(params)
    with self.assertRaisesRegex(ValueError, 'state does not match the transform'):
      chain.apply(params, state)

  def test_not_a_transform(self):
    with self.assertRaisesRegex(TypeError, 'chain takes Transforms'):
      jsp.chain(jsp.nm(2, 4), 'nm(2, 4)')

  def test_biases_and_norms_of_stacks_and_heads_pass_through(self):
    params = {'kernel': jnp.ones((2, 8, 4)), 'bias': jnp.ones((2, 4)), 'norm': {
        'scale': jnp.ones((2, 8)), 'offset': jnp.ones((2, 8))}, 'scales': jnp.ones((4, 4))}
    latents, state = jsp.magnitude(0.5).init(params)
    self.assertEqual([*jsp.masks(state)], ['kernel', 'scales'])
    self.assertIs(latents['bias'], params['bias'])
    rules = [('kernel|scales', jsp.nm(2, 4))]   # which need not speak of the others
    self.assertEqual([*jsp.masks(jsp.rules(rules).init(params)[1])], ['kernel', 'scales'])
    with self.assertRaisesRegex(ValueError, 'biases and scales of norms stay'):
      jsp.at('bias', jsp.nm(2, 4)).init(params)

  def test_no_weight_at_all_passes_through(self):
    params = {'bias': jnp.ones(3)}
    latents, state = jsp.nm(2, 4).init(params)
    self.assertIs(jsp.nm(2, 4).apply(latents, state)['bias'], params['bias'])
    self.assertEqual(jsp.sparsity(state), 0.0)


class ShapesTest(parameterized.TestCase):

  def test_a_nan_under_a_zero_of_the_mask_does_not_survive(self):
    transform = jsp.nm(2, 4)
    params, state = transform.init({'kernel': jnp.arange(1.0, 9.0).reshape(4, 2)})
    broken = jnp.where(jsp.masks(state)['kernel'], params['kernel'], jnp.nan)
    self.assertTrue(bool(jnp.isfinite(transform.apply({'kernel': broken}, state)['kernel']).all()))

  def test_the_same_seed_gives_the_same_bits_and_names_give_other_masks(self):
    params = {'a': jnp.ones((16, 16)), 'b': jnp.ones((16, 16))}
    first, again = (jsp.masks(jsp.rigl(0.5).init(params)[1]) for _ in range(2))
    self.assertTrue(bool((first['a'] == again['a']).all()))
    self.assertFalse(bool((first['a'] == first['b']).all()))
    other = jsp.masks(jsp.rigl(0.5, seed=1).init(params)[1])
    self.assertFalse(bool((first['a'] == other['a']).all()))
    alone = jsp.masks(jsp.rigl(0.5).init({'b': params['b']})[1])
    self.assertTrue(bool((first['b'] == alone['b']).all()))

  def test_a_layer_of_a_stack_competes_by_itself(self):
    params = {'kernel': jnp.stack([jnp.full((4, 4), 100.0), jnp.ones((4, 4))])}
    mask = jsp.masks(jsp.magnitude(0.5).init(params)[1])['kernel']
    self.assertEqual(mask.sum((1, 2)).tolist(), [8, 8])

  def test_pooled_weights_share_one_threshold(self):
    params = {'a': jnp.full((4, 4), 2.0), 'b': jnp.ones((4, 4))}
    transform = jsp.magnitude(0.5, distribution=jsp.pooled)
    masks = jsp.masks(transform.init(params)[1])
    self.assertEqual((int(masks['a'].sum()), int(masks['b'].sum())), (16, 0))

  def test_pruning_then_clustering_keeps_the_zeros(self):
    params = {'kernel': jax.random.normal(jax.random.key(0), (16, 16))}
    transform = jsp.parse('magnitude(0.75) | clustered(4)')
    latents, state = transform.init(params)
    out = transform.apply(latents, state)['kernel']
    self.assertEqual(float((out == 0).mean()), 0.75)
    grads = jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(latents)
    self.assertEqual(int((grads['kernel'].centroids == 0).sum()), 1)
    self.assertEqual(jsp.sparsity(state), 0.75)

  def test_a_frozen_stage_sees_what_is_left_of_it(self):
    params = {'kernel': jax.random.normal(jax.random.key(0), (16, 8))}
    transform = jsp.parse('nm(2, 4) | nf4()')
    latents, state = transform.init(params)
    out = transform.apply(latents, state)['kernel']
    self.assertEqual(float((out == 0).mean()), 0.5)
    self.assertEqual(jax.tree.leaves(latents), [])


if __name__ == '__main__':
  absltest.main()
