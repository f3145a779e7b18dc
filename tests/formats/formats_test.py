"""Stored weights against their dense arrays: products, slices, gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import formats
from jaxsparse.numerics import axes
from tests.trace import stored

D = axes.DimensionNumbers
MAKERS = {m.__name__: m for m in (stored.int8, stored.int4_group, stored.two_four, stored.blocks,
                                  stored.bits, stored.factors, stored.clusters)}
each = parameterized.named_parameters(MAKERS.items())
few = parameterized.parameters(stored.int8, stored.two_four, stored.factors)


def normal(*shape, dtype='float32', seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@functools.cache
def made(make, shape, roles=None, dtype='float32'):
  """Shapes below share the matrices [8, 6] and [3, 8, 6], so little is compiled."""
  return make(normal(*shape, dtype=dtype), roles)


def arrays(tree):
  """Floating leaves, to differentiate; the others stay."""
  return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


class FormatTest(parameterized.TestCase):

  @each
  def test_dot_like_dot_general(self, make):
    for shape, roles, numbers, x in (
        ((6, 8), D((1,), (0,)), (((1,), (1,)), ((), ())), (5, 8)),
        ((4, 2, 6), D((0, 1), (2,)), (((2, 0), (0, 1)), ((), ())), (2, 5, 4)),
        ((8, 3, 6), D((0,), (2,)), (((0,), (0,)), ((2,), (1,))), (8, 5, 3))):
      w, x = made(make, shape, roles), normal(*x)
      self.assertTrue(formats.can_dot(w, numbers))
      both = jax.jit(lambda x, w, n=numbers: (formats.dot(x, w, n),
                                              jax.lax.dot_general(x, w.todense(), n)))
      found, expected = both(x, w)
      chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)

  @few
  def test_other_contractions_densify(self, make):
    w = made(make, (8, 6))
    numbers = (((1,), (1,)), ((), ()))   # an embedding attended to: the output axis contracts
    self.assertFalse(formats.can_dot(w, numbers))
    x = normal(3, 6)
    chex.assert_trees_all_close(formats.dot(x, w, numbers), x @ w.todense().T, rtol=1e-5, atol=1e-5)

  @few
  def test_dtypes(self, make):
    w = made(make, (8, 6), dtype='bfloat16')
    chex.assert_type([w.todense(), w.astype('float32').todense()], ['bfloat16', 'float32'])
    numbers = (((1,), (0,)), ((), ()))
    for x, wanted, dtype in ((normal(3, 8, dtype='bfloat16'), None, 'bfloat16'),
                             (normal(3, 8), None, 'float32'),
                             (normal(3, 8, dtype='bfloat16'), jnp.float32, 'float32')):
      run = jax.jit(functools.partial(formats.dot, dimension_numbers=numbers,
                                      preferred_element_type=wanted))
      out = run(x, w)
      chex.assert_type(out, dtype)
      expected = np.asarray(x, np.float64) @ np.asarray(w.todense(), np.float64)
      np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=0.03, atol=0.05)

  @each
  def test_bytes_and_structure(self, make):
    w = made(make, (3, 8, 6))
    self.assertEqual(w.nbytes, sum(np.asarray(x).nbytes for x in jax.tree.leaves(w)))
    self.assertEqual((w.shape, w.ndim, w.size), ((3, 8, 6), 3, 144))
    again = jax.tree.unflatten(jax.tree.structure(w), jax.tree.leaves(w))
    chex.assert_trees_all_equal(again.todense(), w.todense())

  @each
  def test_scan_vmap_and_slices(self, make):
    w, x = made(make, (3, 8, 6)), normal(3, 5, 8)
    dense = w.todense()
    layer = jax.tree.map(lambda a: a[1], w).drop_leading()
    chex.assert_trees_all_equal(layer.todense(), dense[1])
    expected = x @ dense
    mapped = jax.jit(jax.vmap(lambda w, x: w.drop_leading().matmul(x)))(w, x)
    chex.assert_trees_all_close(mapped, expected, rtol=1e-5, atol=1e-5)
    body = lambda _, pair: (None, pair[0].drop_leading().matmul(pair[1]))
    scanned = jax.jit(lambda w, x: jax.lax.scan(body, None, (w, x))[1])(w, x)
    chex.assert_trees_all_close(scanned, expected, rtol=1e-5, atol=1e-5)

  @few
  def test_gradients(self, make):
    w, x = made(make, (8, 6)), normal(3, 8)
    def gradient(f):
      loss = lambda w, x: jnp.sum(f(w, x) ** 2)
      return jax.jit(jax.grad(loss, (0, 1), allow_int=True))(w, x)

    through = gradient(lambda w, x: w.matmul(x))
    dense = gradient(lambda w, x: x @ w.todense())
    self.assertNotEmpty(arrays(through))
    chex.assert_trees_all_close(arrays(through), arrays(dense), rtol=1e-3, atol=1e-4)

  @parameterized.parameters(stored.int8, stored.int4_group, stored.factors)
  def test_take(self, make):
    w = make(normal(300, 4))
    expected = np.asarray(w.todense())
    for dtype in ('int32', 'uint8'):
      ids = jnp.asarray([[0, 7], [200, 7]], dtype)
      chex.assert_trees_all_close(formats.take(w, ids), expected[np.asarray(ids)], rtol=1e-5,
                                  atol=1e-6)

  @parameterized.named_parameters(('all_columns', [0, 1, 2, 3]), ('two_columns', [1, 2]))
  def test_no_rows_times_blocks(self, kept):
    tiles = np.zeros((4, 4), bool)
    tiles[0, kept] = True
    mask = np.kron(tiles, np.ones((2, 2), bool))
    layout = axes.Layout((8, 8), jnp.dtype('float32'), axes.default_axes(2))
    w = formats.BlockArray.from_mask(normal(8, 8), mask, layout, (2, 2))
    self.assertEqual(w.matmul(jnp.ones((0, 8))).shape, (0, 8))
    chex.assert_trees_all_close(w.matmul(jnp.ones((3, 8))), jnp.ones((3, 8)) @ w.todense(),
                                rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
