"""Which contraction consumes which weight, with which roles."""

import jax
import jax.numpy as jnp
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import trace
from jaxsparse.core import names
from jaxsparse.numerics import axes as axes_
from tests.trace import models

_X = jnp.ones((3, 8))


def conv(numbers, **kwargs):
  return lambda p, x: jax.lax.conv_general_dilated(
      jnp.ones((2, 5, 5, 4)), p['w'], (1, 1), 'SAME', dimension_numbers=numbers, **kwargs)


class WalkTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('matrix', lambda p, x: x @ p['w'], (8, 4), (0,), (1,)),
      ('equinox', lambda p, x: p['w'] @ x.T, (4, 8), (1,), (0,)),
      ('transposed', lambda p, x: x @ p['w'].T, (4, 8), (1,), (0,)),
      ('vector', lambda p, x: x @ p['w'], (8,), (0,), ()),
      ('cast', lambda p, x: x @ p['w'].astype(jnp.bfloat16), (8, 4), (0,), (1,)),
      ('heads out', lambda p, x: jnp.einsum('bi,ihd->bhd', x, p['w']), (8, 2, 4), (0,), (1, 2)),
      ('heads in', lambda p, x: jnp.einsum('bhd,hdo->bo', x.reshape(3, 2, 4), p['w']), (2, 4, 5),
       (0, 1), (2,)),
      ('heads merged by a reshape', lambda p, x: x @ p['w'].reshape(8, 6), (8, 2, 3), (0,), (1, 2)),
      ('heads split by a reshape', lambda p, x: jnp.einsum('bi,ihd->bhd', x, p['w'].reshape(
          8, 2, 3)), (8, 6), (0,), (1,)),
      ('reduction merged', lambda p, x: x @ p['w'].reshape(8, 5), (2, 4, 5), (0, 1), (2,)),
      ('merged and split again', lambda p, x: jnp.einsum('bhd,hdo->bo', x.reshape(
          3, 2, 4), p['w'].reshape(8, 5).reshape(2, 4, 5)), (2, 4, 5), (0, 1), (2,)),
      ('experts', lambda p, x: jnp.einsum('ebi,eio->ebo', x[None].repeat(2, 0), p['w']), (2, 8, 4),
       (1,), (2,)),
      ('experts that share an input', lambda p, x: jax.vmap(lambda w: x @ w)(p['w']), (2, 8, 4),
       (1,), (2,)),
      ('vmapped experts', lambda p, x: jax.vmap(lambda w, x: x @ w)(p['w'], x), (3, 8, 4), (1,),
       (2,)),
      ('fused and split', lambda p, x: sum(x @ w for w in jnp.split(p['w'], 3, 1)), (8, 6), (0,),
       (1,)),
      ('sliced', lambda p, x: x @ p['w'][:, :2], (8, 6), (0,), (1,)),
      ('indexed', lambda p, x: x @ p['w'][0] @ p['w'][1], (2, 8, 8), (1,), (2,)),
      ('scanned', lambda p, x: jax.lax.scan(lambda c, w: (c @ w, c), x, p['w']), (4, 8, 8), (1,),
       (2,)),
      ('scanned twice', lambda p, x: jax.lax.scan(lambda c, m: jax.lax.scan(
          lambda c, w: (c @ w.T, None), c, m), x, p['w']), (4, 2, 8, 8), (3,), (2,)),
      ('scanned along another axis', lambda p, x: jax.lax.scan(
          lambda c, w: (c @ w, c), x, jnp.moveaxis(p['w'], 1, 0)), (8, 4, 8), (0,), (2,)),
      ('scanned as a constant', lambda p, x: jax.lax.scan(
          lambda c, _: (c @ p['w'], None), x, None, length=3), (8, 8), (0,), (1,)),
      ('conv HWIO', conv(('NHWC', 'HWIO', 'NHWC')), (3, 3, 4, 6), (0, 1, 2), (3,)),
      ('conv OIHW', conv(('NHWC', 'OIHW', 'NHWC')), (6, 4, 3, 3), (1, 2, 3), (0,)),
      ('depthwise', conv(('NHWC', 'HWIO', 'NHWC'), feature_group_count=4), (3, 3, 1, 4), (0, 1, 2),
       (3,)),
      ('ragged', lambda p, x: jax.lax.ragged_dot(x, p['w'], jnp.array([1, 2])), (2, 8, 4), (1,),
       (2,)),
      ('lookup', lambda p, x: jnp.take(p['w'], jnp.array([1, 2]), axis=0), (7, 4), (0,), (1,)),
      ('lookup and product', lambda p, x: p['w'][jnp.array([1, 2])] @ p['w'].T, (7, 4), (1,), (0,)),
      ('row', lambda p, x: p['w'][jnp.argmax(x[0])], (7, 4), (0,), (1,)))
  def test_roles(self, fn, shape, reduction, output):
    axes = trace.axes_of(fn, {'w': jnp.ones(shape)}, _X)
    self.assertEqual(axes, {'w': axes_.DimensionNumbers(reduction, output)})

  @parameterized.named_parameters(
      ('elementwise', lambda p, x: x @ (p['w'] * 2)),
      ('diagonal', lambda p, x: jnp.einsum('bi,io->bio', x, p['w'])),
      ('masked', lambda p, x: x @ jnp.where(p['w'] > 0, p['w'], 0)),
      ('unused', lambda p, x: x))
  def test_no_contraction(self, fn):
    self.assertEmpty(trace.contractions(fn, {'w': jnp.ones((8, 4))}, _X))

  def test_a_reshape_that_mixes_axes_loses_the_roles_but_not_the_name(self):
    fn = lambda p, x: x @ p['w'].reshape(8, 3)
    found, = trace.contractions(fn, {'w': jnp.ones((6, 4))}, _X)
    self.assertEqual((found.name, found.axes), ('w', None))
    self.assertEmpty(trace.axes_of(fn, {'w': jnp.ones((6, 4))}, _X))

  @parameterized.named_parameters(
      ('jit', jax.jit), ('remat', jax.checkpoint), ('nested', lambda f: jax.jit(jax.checkpoint(f))),
      ('vmap', lambda f: lambda w, x: jax.vmap(f, (None, 0))(w, x[:, None])),
      ('cond', lambda f: lambda w, x: jax.lax.cond(x[0, 0] > 0, f, lambda w, x: x, w, x)),
      ('switch', lambda f: lambda w, x: jax.lax.switch(0, [lambda w, x: x, f], w, x)),
      ('while', lambda f: lambda w, x: jax.lax.while_loop(
          lambda c: c[1] < 2, lambda c: (f(w, c[0]), c[1] + 1), (x, 0))),
      ('condition of a while', lambda f: lambda w, x: jax.lax.while_loop(
          lambda x: f(w, x).sum() < 2, lambda x: x + 1, x)),
      ('carried', lambda f: lambda w, x: jax.lax.fori_loop(
          0, 3, lambda i, c: (c[0], f(*c)), (w, x))),
      ('gradient', lambda f: jax.grad(lambda w, x: f(w, x).sum(), 1)))
  def test_found_through(self, wrap):
    fn = lambda p, x: wrap(lambda w, x: jnp.tanh(x @ w))(p['w'], x)
    found = trace.contractions(fn, {'w': jnp.ones((8, 8))}, _X)
    self.assertIn('w', {c.name for c in found})
    self.assertLen({c.site for c in found}, len(found))

  def test_custom_derivatives(self):
    @jax.custom_vjp
    def product(w, x):
      return x @ w
    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (r[1].T @ g, g @ r[0].T))
    found, = trace.contractions(lambda p, x: product(p['w'], x), {'w': jnp.ones((8, 4))}, _X)
    self.assertEqual(found.name, 'w')

  def test_repeats_multiply(self):
    def fn(p, x):
      inner = lambda c, _: (c @ p['w'], None)
      outer = lambda c, _: jax.lax.scan(inner, c, None, length=3)
      return jax.lax.scan(outer, x, None, length=5)
    found, = trace.contractions(fn, {'w': jnp.ones((8, 8))}, _X)
    self.assertEqual((found.repeats, found.multiply_adds), (15, 3 * 64))

  def test_a_changed_carry_is_no_longer_the_weight(self):
    fn = lambda p, x: jax.lax.scan(lambda w, _: (w + 1, x @ w), p['w'], None, length=2)
    self.assertEmpty(trace.contractions(fn, {'w': jnp.ones((8, 8))}, _X))

  @parameterized.named_parameters((model, model) for model in models.ALL)
  def test_every_kernel_of_stock_models(self, model):
    fn, params, x = models.ALL[model]()
    abstract = jax.eval_shape(lambda x: x, x)
    found = {c.name for c in trace.contractions(fn, params, abstract)}
    leaves, _ = names.named_leaves(params)
    kernels = {leaf.name for leaf in leaves if leaf.is_weight
               and not leaf.name.endswith(('bias', 'scale'))}
    self.assertEqual(found, kernels)
    self.assertEqual(set(trace.axes_of(fn, params, x)), kernels)


if __name__ == '__main__':
  absltest.main()
