"""Counts against counts by hand."""

import jax
import jax.numpy as jnp
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

from jaxsparse import trace
from tests.trace import models
from tests.trace import stored


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


class FlopsTest(parameterized.TestCase):

  def test_mlp(self):
    net = nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(3)])
    x = jax.ShapeDtypeStruct((5, 4), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    count = trace.flops(net.apply, params, x)
    self.assertEqual(count.weights, {'params/layers_0/kernel': (2 * 5 * 4 * 7,) * 2,
                                     'params/layers_2/kernel': (2 * 5 * 7 * 3,) * 2})
    self.assertEqual((count.executed, count.ideal, count.other), (490, 490, 0))

  @parameterized.parameters((1, 'SAME', 1, 30), (2, 'SAME', 1, 9), (1, 'VALID', 1, 12),
                            (1, 'SAME', 2, 30))
  def test_convolution(self, stride, padding, groups, positions):
    net = nn.Conv(8, (3, 3), stride, padding, feature_group_count=groups)
    x = jnp.zeros((2, 6, 5, 4))
    params = net.init(jax.random.key(0), x)
    count = trace.flops(net.apply, params, x)
    self.assertEqual(count.executed, 2 * 2 * positions * 3 * 3 * (4 // groups) * 8)

  def test_attention(self):
    net = nn.MultiHeadDotProductAttention(2, qkv_features=8, out_features=6)
    x = jnp.zeros((3, 5, 6))
    params = net.init(jax.random.key(0), x)
    count = trace.flops(net.apply, params, x)
    self.assertEqual({k.split('/')[1]: w.executed for k, w in count.weights.items()},
                     {'query': 2 * 15 * 48, 'key': 2 * 15 * 48, 'value': 2 * 15 * 48,
                      'out': 2 * 15 * 48})
    # Scores and their product with the values: batch * heads * q * k * head size, each.
    self.assertEqual(count.other, 2 * 2 * 3 * 2 * 5 * 5 * 4)

  def test_formats(self):
    x, w = jnp.zeros((5, 8)), normal(8, 6)
    count = lambda make: trace.flops(lambda p, x: x @ p['w'], {'w': make(w)}, x).weights['w']
    dense = 2 * 5 * 8 * 6
    kept = int((stored.bits(w).todense() != 0).sum())
    self.assertEqual(count(stored.int8), (dense, dense))
    self.assertEqual(count(stored.two_four), (dense, dense // 2))
    self.assertEqual(count(stored.bits), (dense, 2 * 5 * kept))
    self.assertEqual(count(stored.factors), (2 * 5 * 2 * (8 + 6),) * 2)
    self.assertEqual(count(stored.blocks).ideal, dense // 2)

  def test_formats_where_they_are_densified(self):
    x, w = jnp.zeros((5, 8)), normal(8, 6)
    dense, thin = 2 * 5 * 8 * 6, 2 * 5 * 2 * (8 + 6)
    merged = 2 * 8 * 2 * 6   # the factors are multiplied out first
    count = lambda fn, w: trace.flops(fn, {'w': w}, x)
    other = count(lambda p, x: x @ p['w'].T, stored.factors(normal(6, 8)))
    self.assertEqual(other.weights['w'].executed, dense + merged)
    split = count(lambda p, x: jnp.einsum('bij,ijo->bo', x.reshape(5, 2, 4), p['w'].reshape(
        2, 4, 6)), stored.factors(w))
    self.assertEqual(split.weights['w'], (dense + merged, thin))
    lazily = count(lambda p, x: (p['w'].T.astype(jnp.bfloat16) @ x.T), stored.factors(w))
    self.assertEqual(lazily.weights['w'], (thin, thin))

  def test_convolutions_of_formats(self):
    x, w = jnp.zeros((2, 6, 5, 4)), normal(3, 3, 4, 8)
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    axes = trace.axes_of(fn, {'w': w}, x)['w']
    dense = 2 * 2 * 30 * 36 * 8
    low = trace.flops(fn, {'w': stored.factors(w, axes)}, x)
    self.assertEqual(low.weights['w'], (2 * 2 * 30 * 2 * (36 + 8),) * 2)
    half = trace.flops(fn, {'w': stored.two_four(w, axes)}, x)
    self.assertEqual(half.weights['w'], (dense, dense // 2))

  def test_loops(self):
    params, x = {'w': normal(8, 8), 's': normal(4, 8, 8)}, jnp.zeros((5, 8))
    one = 2 * 5 * 64
    scan = lambda p, x: jax.lax.scan(lambda c, w: (jax.lax.scan(
        lambda d, _: (d @ w @ p['w'], None), c, None, length=3)[0], None), x, p['s'])
    self.assertEqual(trace.flops(scan, params, x).weights,
                     {'s': (12 * one,) * 2, 'w': (12 * one,) * 2})
    cond = lambda p, x: jax.lax.cond(x[0, 0] > 0, lambda: x @ p['w'], lambda: x @ p['w'] @ p['w'])
    self.assertEqual(trace.flops(cond, params, x).executed, 2 * one)
    loop = lambda p, x: jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: c @ p['w'], x @ p['w'])
    count = trace.flops(loop, params, x)
    self.assertEqual((count.executed, len(count.unbounded)), (2 * one, 1))
    self.assertIn('counted once', str(count))

  def test_scanned_format(self):
    x, w = jnp.zeros((5, 8)), normal(4, 8, 8)
    fn = lambda p, x: jax.lax.scan(lambda c, w: (c @ w, None), x, p['w'])[0]
    for make, executed, ideal in ((stored.factors, 2 * 16, 2 * 16), (stored.two_four, 64, 32)):
      count = trace.flops(fn, {'w': make(w)}, x)
      self.assertEqual(count.weights['w'], (2 * 5 * 4 * executed, 2 * 5 * 4 * ideal))
    stepped = trace.flops(lambda p, x: x @ p['w'][0] @ p['w'][2], {'w': stored.factors(w)}, x)
    self.assertEqual(stepped.weights['w'], (2 * 2 * 5 * 32,) * 2)

  def test_ragged_lookup_and_experts(self):
    sizes = jnp.array([2, 3])
    ragged = lambda p, x: jax.lax.ragged_dot(x, p['w'], sizes)
    self.assertEqual(trace.flops(ragged, {'w': normal(2, 8, 4)}, normal(5, 8)).executed, 2 * 5 * 32)
    for make, share in ((stored.factors, 3 / 4), (stored.two_four, 1)):
      count = trace.flops(ragged, {'w': make(normal(2, 8, 4))}, normal(4, 8)).executed
      self.assertEqual(count, share * 2 * 4 * 32)
    lookup = lambda p, ids: jnp.take(p['w'], ids, axis=0)
    self.assertEqual(trace.flops(lookup, {'w': normal(8, 4)}, jnp.arange(3)).executed, 0)
    experts = lambda p, x: jnp.einsum('ebi,eio->ebo', x, p['w'])
    count = trace.flops(experts, {'w': stored.two_four(normal(3, 8, 4))}, normal(3, 5, 8))
    self.assertEqual(count.weights['w'], (2 * 15 * 32, 15 * 32))
    shared = lambda p, x: jax.vmap(lambda w: x @ w)(p['w'])
    count = trace.flops(shared, {'w': stored.two_four(normal(3, 8, 4))}, normal(5, 8))
    self.assertEqual(count.weights['w'], (2 * 15 * 32, 15 * 32))

  def test_gradients_and_dispatched_functions(self):
    params, x = {'w': normal(8, 4)}, normal(5, 8)
    fn = lambda p, x: (x @ p['w']).sum()
    self.assertEqual(trace.flops(jax.grad(fn), params, x).executed, 2 * 2 * 5 * 32)
    packed = {'w': stored.factors(normal(8, 4))}
    self.assertEqual(trace.flops(trace.dispatch(fn), packed, x), trace.flops(fn, packed, x))

  @parameterized.parameters('haiku_net', 'equinox_net', 'bare')
  def test_agrees_with_xla(self, model):
    fn, params, x = models.ALL[model]()
    kept, rest = stored.arrays_of(params)
    run = lambda kept, x: fn(stored.with_arrays(kept, rest), x)
    analysis = jax.jit(run).lower(kept, x).compile().cost_analysis()
    count = trace.flops(run, kept, x).executed
    self.assertGreater(analysis['flops'], 0.6 * count)
    self.assertLess(analysis['flops'], 1.5 * count)

  def test_operations_without_operands(self):
    fn = lambda p, x: x @ p['w'] + jnp.arange(3, dtype=x.dtype)[None]
    count = trace.flops(jax.jit(fn), {'w': jnp.ones((4, 3))}, jnp.ones((5, 4)))
    self.assertEqual(count.executed, 120)

  def test_table(self):
    count = trace.Flops({'a/kernel': trace.WeightFlops(2000, 1000)}, 24)
    self.assertEqual(str(count).splitlines(), [
        'weight    executed  ideal', 'a/kernel     2,000  1,000', 'other           24     24',
        'total        2,024  1,024'])


if __name__ == '__main__':
  absltest.main()
