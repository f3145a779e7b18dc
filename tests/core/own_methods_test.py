"""Methods written by a user, to the letter of the protocol, compose like the library's own."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


class Gained(NamedTuple):
  a: jax.Array
  gain: jax.Array


def gained():
  def init(w, *, stats=None, grads=None, seed=None):
    return Gained(w, jnp.ones((1, w.shape[-1]))), ()
  return jsp.leafwise(jsp.Parametrization(init, lambda l, s, *, count, seed: l.a * l.gain))


def doubled():
  """A raw Transform: it knows trees of arrays and nothing else."""
  scale = lambda factor: lambda p, s: jax.tree.map(lambda x: x * factor, p)
  return jsp.Transform(
      lambda params, **_: (jax.tree.map(lambda x: x / 2, params), ()), scale(2.0),
      lambda params, state, **_: state, scale(2.0))


class OwnMethodsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.params = {'a': {'kernel': jax.random.normal(jax.random.key(0), (8, 4))},
                   'b': {'kernel': jax.random.normal(jax.random.key(1), (4, 4))}}

  @parameterized.named_parameters(
      ('alone', lambda: gained()), ('at', lambda: jsp.at('a/kernel', gained())),
      ('then_nm', lambda: jsp.chain(gained(), jsp.nm(2, 4))),
      ('rules', lambda: jsp.rules([('a/.*', gained()), ('.*', jsp.nm(2, 4))])),
      ('as_a_base', lambda: jsp.lora(2, base=gained())),
      ('raw', lambda: doubled()), ('raw_after_nm', lambda: jsp.chain(jsp.nm(2, 4), doubled())),
      ('raw_between', lambda: jsp.chain(jsp.rigl(0.5), doubled(), jsp.lsq(4))))
  @pytest.mark.sampled(5)
  def test_composes(self, make):
    transform = make()
    latents, state = transform.init(self.params)
    effective = jsp.densify(transform.apply(latents, state))
    chex.assert_trees_all_equal_shapes_and_dtypes(effective, self.params)
    chex.assert_trees_all_close(jsp.densify(transform.pack(latents, state)), effective, rtol=1e-6)
    new = transform.update(latents, state, grads=effective, refresh=True)
    self.assertEqual(jax.tree.structure(new), jax.tree.structure(state))
    grads = jax.grad(lambda p: sum(jnp.sum(x) for x in jax.tree.leaves(
        jsp.densify(transform.apply(p, state)))))(latents)
    chex.assert_tree_all_finite(grads)

  @parameterized.parameters('lsq(4)', 'low_rank(2)', 'lora(2)', "fake_quantize('int8')")
  def test_latents_of_another_shape(self, text):
    transform = jsp.parse(text)
    latents, _ = transform.init({'kernel': jnp.ones((8, 4))})
    _, state = transform.init({'kernel': jnp.ones((16, 4))})
    for run in (transform.apply, transform.update, transform.pack):
      with self.assertRaisesRegex(ValueError, r'kernel: .*found .*\(8, .*expected .*\(16, '):
        run(latents, state)

  @parameterized.parameters('nm(2, 4)', 'lsq(4)', 'rigl(0.5)')
  def test_no_state(self, text):
    transform = jsp.parse(text)
    latents, _ = transform.init(self.params)
    for run in (transform.apply, transform.update, transform.pack):
      with self.assertRaisesRegex(ValueError, 'found NoneType, expected WeightsState'):
        run(latents, None)

  def test_gradients_of_another_tree(self):
    transform = jsp.rigl(0.5)
    latents, state = transform.init(self.params)
    with self.assertRaisesRegex(ValueError, r'b/kernel: .*found none, expected shape \(4, 4\)'):
      transform.update(latents, state, grads={'a': self.params['a']})

  def test_flops_of_a_convolution_with_a_lora_are_those_of_the_merged_kernel(self):
    params = {'conv': {'kernel': jnp.ones((3, 3, 4, 8))}}
    transform = jsp.lora(1)
    packed = transform.pack(*transform.init(params))

    def fn(p, x):
      return jax.lax.conv_general_dilated(
          x, p['conv']['kernel'], (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    count = jsp.flops(fn, packed, jnp.ones((2, 9, 9, 4)))
    dense = 2 * 2 * 4 * 4 * 36 * 8
    self.assertEqual((count.executed, count.ideal), (dense + 2 * 36 * 8, dense))


if __name__ == '__main__':
  absltest.main()
