"""Heads of attention projections, natural and merged, and runs of outputs."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

RNG = np.random.default_rng(0)


class HeadTest(parameterized.TestCase):

  @parameterized.named_parameters(
      dict(testcase_name='query', name='query/kernel', shape=(6, 4, 3), heads=1),
      dict(testcase_name='stacked', name='layers/key/kernel', shape=(2, 6, 4, 3), heads=2),
      dict(testcase_name='out', name='out/kernel', shape=(4, 3, 5), heads=0),
      dict(testcase_name='stacked_out', name='layers/out/kernel', shape=(2, 4, 3, 5), heads=1))
  def test_natural_axes(self, name, shape, heads):
    w = RNG.normal(size=shape).astype('f')
    transform = jsp.parse('magnitude(0.5, pattern=head())')
    params, state = transform.init({name: jnp.asarray(w, 'bfloat16')})
    mask = np.asarray(jsp.masks(state)[name])
    stack = len(shape) == 4
    others = tuple(a for a in range(int(stack), len(shape)) if a != heads)
    score = np.abs(np.asarray(params[name], 'f')).mean(others)   # [(layers,) heads]
    kept = np.argsort(np.argsort(-score, axis=-1), axis=-1) < 2
    shown = kept.reshape([n if a == heads or (stack and a == 0) else 1
                          for a, n in enumerate(shape)])
    np.testing.assert_array_equal(mask, np.broadcast_to(shown, shape))
    packed = transform.pack(params, state)[name]
    self.assertTrue(jsp.is_format(packed))
    np.testing.assert_array_equal(jsp.densify(packed), jnp.where(mask, params[name], 0))
    self.assertEqual(jsp.plan(transform, params)[0].sparsity, 0.5)

  @parameterized.parameters(('output', (5, 12)), ('reduction', (12, 5)))
  def test_merged_axes(self, axis, shape):
    transform = jsp.prune('magnitude', schedule=0.75, pattern=jsp.head(axis, size=3))
    w = RNG.normal(size=shape).astype('f')
    _, state = transform.init({'kernel': jnp.asarray(w)})
    mask = np.asarray(jsp.masks(state)['kernel'])
    columns = mask if axis == 'output' else mask.T
    scores = np.abs(w if axis == 'output' else w.T).reshape(5, 4, 3).mean((0, 2))
    np.testing.assert_array_equal(columns, np.tile(np.repeat(np.eye(4)[scores.argmax()], 3),
                                                   (5, 1)))

  @parameterized.parameters('static(0.5, pattern=head())', 'straight_through(0.5, pattern=head())',
                            'static(0.5, pattern=vector(3))', 'magnitude(0.5, pattern=vector())')
  def test_every_masked_method_takes_it(self, text):
    transform = jsp.parse(text)
    expected = text.replace('vector()', 'vector(16)').replace('head()', 'head(None)')
    self.assertEqual(jsp.spell(transform), expected)
    params, state = transform.init({'value/kernel': jnp.asarray(RNG.normal(size=(4, 8, 4)), 'f')})
    self.assertAlmostEqual(jsp.sparsity(state), 0.5, delta=0.05)
    new = transform.update(params, state, refresh=True)
    self.assertAlmostEqual(jsp.sparsity(new), 0.5, delta=0.05)

  @parameterized.named_parameters(
      dict(testcase_name='axis', make=lambda: jsp.head('in'), message="got 'in'"),
      dict(testcase_name='size', make=lambda: jsp.head(size=4), message='say which'),
      dict(testcase_name='zero', make=lambda: jsp.head('output', size=0), message='size must be'),
      dict(testcase_name='matrix', make=lambda: jsp.magnitude(0.5, pattern=jsp.head()).init(
          {'kernel': jnp.ones((4, 4))}), message='kernel: no heads in a weight of shape'),
      dict(testcase_name='wrong', make=lambda: jsp.magnitude(0.5, pattern=jsp.head('reduction'))
           .init({'query/kernel': jnp.ones((4, 2, 2))}), message='query/kernel: no heads'),
      dict(testcase_name='divide', make=lambda: jsp.magnitude(
          0.5, pattern=jsp.head('output', size=3)).init({'kernel': jnp.ones((4, 4))}),
           message='kernel: the output axis of size 4 .* not divisible by size=3'))
  def test_bad(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  def test_filters_of_a_convolution_are_its_output_channels(self):
    w = RNG.normal(size=(3, 3, 4, 6)).astype('f')
    _, state = jsp.magnitude(0.5, pattern=jsp.channel('output')).init({'conv/kernel': w})
    mask = np.asarray(jsp.masks(state)['conv/kernel'])
    best = np.argsort(-np.abs(w).mean((0, 1, 2)))[:3]
    expected = np.zeros(w.shape, bool)
    expected[..., best] = True
    np.testing.assert_array_equal(mask, expected)

  def test_vectors_of_a_ragged_row(self):
    w = RNG.normal(size=(3, 20)).astype('f')
    mask = np.asarray(jsp.vector(16).mask(jnp.abs(w), 3))
    means = np.stack([np.abs(w[:, :16]).mean(-1), np.abs(w[:, 16:]).mean(-1)], -1)
    kept = np.argsort(np.argsort(-means.ravel())).reshape(3, 2) < 3
    np.testing.assert_array_equal(mask, np.repeat(kept, [16, 4], axis=1))


if __name__ == '__main__':
  absltest.main()
