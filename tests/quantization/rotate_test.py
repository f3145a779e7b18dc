"""Rotated transformers: the same function, smaller outliers, less lost in four bits."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen

import jaxsparse as jsp

_WIDTH = 24


class _Block(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = x + linen.MultiHeadDotProductAttention(2, name='attention')(
        linen.LayerNorm(name='norm_1')(x))
    h = linen.gelu(linen.Dense(48, name='up')(linen.LayerNorm(name='norm_2')(x)))
    return x + linen.Dense(_WIDTH, name='down')(h)


class _Net(linen.Module):
  @linen.compact
  def __call__(self, ids):
    x = linen.Embed(13, _WIDTH, name='embed')(ids)
    for n in range(2):
      x = _Block(name=f'block_{n}')(x)
    return linen.Dense(7, name='head')(linen.LayerNorm(name='norm')(x))


_READS = r'.*/(query|key|value|up|head)/kernel'
_WRITES = r'.*embed/embedding|.*/(out|down)/(kernel|bias)'


def norms():
  found = {'params/norm': 'params/head/kernel'}
  for n in range(2):
    block = f'params/block_{n}'
    found[f'{block}/norm_1'] = f'{block}/attention/(query|key|value)/kernel'
    found[f'{block}/norm_2'] = f'{block}/up/kernel'
  return found


class RotateTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 3, 16, 24, 35)
  def test_rotation(self, size):
    q = jsp.rotation(size, 3)
    np.testing.assert_allclose(q @ q.T, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(q.sum(1), 1, atol=1e-12)
    with self.assertRaisesRegex(ValueError, 'positive integer'):
      jsp.rotation(0)

  def test_the_same_function_and_smaller_outliers(self):
    net, ids = _Net(), jax.random.randint(jax.random.key(1), (8, 10), 0, 13)
    params = jax.jit(net.init)(jax.random.key(0), ids)
    # Scales and biases that are not trivial, and a channel of outliers as large models have.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [x + 0.3 * jax.random.normal(k, x.shape) if x.ndim == 1 else x
              for x, k in zip(leaves, keys)]
    params = tree.unflatten(leaves)
    table = params['params']['embed']['embedding']
    params['params']['embed']['embedding'] = table.at[:, 5].add(12.0)
    run = jax.jit(net.apply)
    new = jsp.rotate(params, reads=_READS, writes=_WRITES, norms=norms())
    np.testing.assert_allclose(run(new, ids), run(params, ids), atol=2e-4)
    moved = np.abs(np.asarray(new['params']['block_0']['up']['kernel'])
                   - np.asarray(params['params']['block_0']['up']['kernel'])).max()
    self.assertGreater(moved, 0.01)

    largest = jsp.Observer(lambda contraction, x: jnp.abs(x).max() / jnp.sqrt((x * x).mean()))
    peak = lambda p: jsp.calibrate(net.apply, p, [ids], largest)['params/block_0/up/kernel']
    self.assertLess(float(peak(new)), 0.8 * float(peak(params)))
    four = jax.jit(jsp.quantize_activations(net.apply, 'int4', granularity='row'))
    lost = lambda p: float(jnp.square(four(p, ids) - run(params, ids)).mean())
    self.assertLess(lost(new), 0.65 * lost(params))

  def test_bad(self):
    params = {'embed': jnp.ones((5, 4)), 'head': jnp.ones((4, 2)), 'odd': jnp.ones((3, 3)),
              'norm': {'scale': jnp.ones(4), 'bias': jnp.ones(4)}, 'b': jnp.ones(3)}
    for kwargs, message in (
        ({'reads': 'nothing', 'writes': 'embed'}, "no weight matches 'nothing'"),
        ({'reads': 'head', 'writes': 'odd'}, r'odd: its matrix is \(3, 3\), the stream is 4'),
        ({'reads': 'head', 'writes': 'b'}, 'b: its shape is'),
        ({'reads': 'b', 'writes': 'embed'}, 'two axes and more'),
        ({'reads': 'head', 'writes': 'embed', 'norms': {'norm': 'head'}},
         'head: norm has a bias, which needs one at bias'),
        ({'reads': 'head', 'writes': 'embed', 'norms': {'gone': 'head'}}, 'gone: it has neither')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.rotate(params, **kwargs)


if __name__ == '__main__':
  absltest.main()
