"""The interpreter under a hook: nothing changes, and aux comes back from everywhere."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import trace
from tests.trace import models
from tests.trace import stored


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def plain(contraction, x, w):
  return contraction.compute(x, w), None


def count(contraction, x, w):
  return contraction.compute(x, w), jnp.int32(1)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['w', 'b'], meta_fields=['act'])
@dataclasses.dataclass
class _Layer:
  w: jax.Array
  b: jax.Array
  act: str


class SameResultTest(parameterized.TestCase):

  @parameterized.parameters('transformer', 'cnn', 'equinox_net', 'bare')
  def test_models(self, model):
    fn, params, x = models.ALL[model]()
    kept, rest = stored.arrays_of(params)
    run = lambda wrap: jax.jit(lambda kept, x: wrap(fn)(stored.with_arrays(kept, rest), x))
    out, aux = run(lambda f: trace.hooked(f, count))(kept, x)
    np.testing.assert_array_equal(out, run(lambda f: f)(kept, x))
    self.assertNotEmpty(aux)

  @parameterized.named_parameters(
      ('literals', lambda p, x: x @ p['w'] * 2 + 1.5),
      ('repeated outputs', lambda p, x: (x, p['w'], x @ p['w'], p['w'], x)),
      ('constant output', lambda p, x: (3, jnp.ones(2), None, {'a': ()}, x @ p['w'])),
      ('captured constants', lambda p, x: x @ p['w'] + np.arange(8.0, dtype=np.float32)[None]),
      ('weight times weight', lambda p, x: x @ (p['w'] @ p['v'])),
      ('weight times itself', lambda p, x: p['w'].T @ p['w']),
      ('norms of weights', lambda p, x: jnp.linalg.norm(p['w']) + (x @ p['w']).sum()),
      ('integers', lambda p, x: p['i'] @ jnp.arange(8) + jnp.take(p['i'], 3, axis=1)),
      ('odd einsums', lambda p, x: (
          jnp.einsum('ij,bi->jb', p['w'], x), jnp.einsum('ij,jk,bi->kb', p['w'], p['v'], x),
          jnp.einsum('ij,bj->', p['w'], x), jnp.einsum('ii,bi->b', p['w'], x),
          jnp.einsum('bi,ij,bj->b', x, p['w'], x), jnp.einsum('ij->j', p['w']))),
      ('split and concatenate', lambda p, x: jnp.concatenate(
          [x @ w for w in jnp.split(p['w'], 4, axis=1)], -1)),
      ('weight scanned as data', lambda p, x: jax.lax.scan(
          lambda c, row: (c + row, c @ p['v']), jnp.zeros(8), p['w'])),
      ('weight in the carry, changing', lambda p, x: jax.lax.scan(
          lambda w, _: (w @ w, x @ w), p['w'], None, length=2)),
      ('weights that trade places', lambda p, x: jax.lax.fori_loop(
          0, 3, lambda i, c: (c[1], c[0], c[2] @ c[0]), (p['w'], p['v'], x))),
      ('scan in reverse, unrolled', lambda p, x: jax.lax.scan(
          lambda c, y: (jnp.tanh(c @ p['w'] + y), c), x[0], x, reverse=True, unroll=2)),
      ('nested scans', lambda p, x: jax.lax.scan(
          lambda c, y: jax.lax.scan(lambda d, z: (d @ p['w'] * z, z), c, y), x, x)),
      ('empty scan', lambda p, x: jax.lax.scan(
          lambda c, y: (c @ p['w'], c), x, jnp.zeros((0, 3)))),
      ('cond', lambda p, x: jax.lax.cond(x[0, 0] > 5, lambda w: (x @ w, w), lambda w: (x, w + 1),
                                         p['w'])),
      ('switch on a weight', lambda p, x: jax.lax.switch(
          p['i'][0, 0], [lambda: x, lambda: x @ p['w'], lambda: x @ p['v']])),
      ('while on a weight', lambda p, x: jax.lax.while_loop(
          lambda c: (c @ p['w']).sum() < p['v'].sum(), lambda c: c + p['w'][None, 0], x)),
      ('map', lambda p, x: jax.lax.map(lambda row: p['w'] @ row, x)),
      ('associative scan', lambda p, x: jax.lax.associative_scan(jnp.add, x @ p['w'])),
      ('vmap over weights', lambda p, x: jax.vmap(lambda a: x @ a)(jnp.stack([p['w'], p['v']]))),
      ('vmap of weights', lambda p, x: jax.vmap(jnp.dot, (0, None))(p['w'], x[0])),
      ('inner gradient', lambda p, x: jax.grad(lambda x: jnp.tanh(x @ p['w']).sum())(x)),
      ('gradient by the weight', lambda p, x: jax.grad(
          lambda w: jnp.tanh(x @ jax.checkpoint(jnp.sin)(w)).sum())(p['w'])),
      ('linear solve', lambda p, x: jnp.linalg.solve(p['w'] + 9 * jnp.eye(8), x.T)),
      ('custom root', lambda p, x: jax.lax.custom_linear_solve(
          lambda v: p['w'] @ v, x[0], lambda mv, b: b)),
      ('sorting', lambda p, x: jnp.sort(p['w'])[::-1] @ x.T),
      ('host callback', lambda p, x: jax.pure_callback(
          np.asarray, jax.ShapeDtypeStruct((3, 8), jnp.float32), x @ p['w'])),
      ('scatter', lambda p, x: x @ p['w'].at[0].set(1.0)),
      ('flip', lambda p, x: x @ p['w'][::-1]),
      ('dynamic slices', lambda p, x: x[:, :4] @ jax.lax.dynamic_slice(
          p['w'], (jnp.argmax(x[0]) % 4, 0), (4, 8))),
      ('barrier', lambda p, x: x @ jax.lax.optimization_barrier((p['w'], x, p['v']))[2]),
      ('associated keys', lambda p, x: x @ p['w'] + jax.random.normal(jax.random.key(0), (3, 8))))
  def test_bare_functions(self, fn):
    params = {'w': normal(8, 8), 'v': normal(8, 8, seed=1), 'i': jnp.arange(64).reshape(8, 8) % 3}
    x = normal(3, 8, seed=2)
    expected = jax.jit(fn)(params, x)
    out, _ = jax.jit(trace.hooked(fn, count))(params, x)
    chex.assert_trees_all_equal(out, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(out, expected)
    packed = params | {'w': stored.int8(params['w']), 'v': stored.bits(params['v'])}
    dense = params | {k: packed[k].todense() for k in 'wv'}
    close = functools.partial(chex.assert_trees_all_close, rtol=2e-4, atol=2e-4)
    close(jax.jit(trace.dispatch(fn))(packed, x), jax.jit(fn)(dense, x))

  def test_dataclass_params_and_weights_in_both_arguments(self):
    layer = _Layer(normal(8, 8), normal(8), 'tanh')
    fn = lambda p, x, q: getattr(jnp, p.act)(x @ p.w + p.b[None]) @ q.w
    out, aux = trace.hooked(fn, count)(layer, normal(3, 8), layer)
    np.testing.assert_array_equal(out, fn(layer, normal(3, 8), layer))
    self.assertEqual(aux, {'w': 1})

  def test_a_bare_array_is_a_tree(self):
    out, aux = trace.hooked(lambda w, x: x @ w, count)(normal(8, 4), normal(3, 8))
    np.testing.assert_array_equal(out, normal(3, 8) @ normal(8, 4))
    self.assertEqual(aux, {'': 1})

  def test_under_transformations(self):
    fn = lambda p, x: jnp.tanh(x @ p['w']).sum()
    run = trace.hooked(fn, plain)
    params, x = {'w': normal(8, 8)}, normal(3, 8, seed=1)
    grad = jax.grad(lambda p: run(p, x)[0])(params)
    chex.assert_trees_all_close(grad, jax.grad(fn)(params, x), rtol=1e-6)
    stack = {'w': normal(4, 8, 8)}
    over = jax.vmap(lambda p: run(p, x)[0])(stack)
    chex.assert_trees_all_close(over, jax.vmap(lambda p: fn(p, x))(stack), rtol=1e-6)
    _, seen = jax.lax.scan(lambda c, x: (c, trace.hooked(fn, count)(params, x)[1]), 0, x[None])
    self.assertEqual(seen['w'].shape, (1,))
    nested = trace.hooked(lambda p, x: trace.hooked(fn, count)(p, x)[0], count)(params, x)
    self.assertEqual(nested[1]['w'], 1)
    shapes = jax.eval_shape(trace.hooked(fn, count), params, x)
    self.assertEqual(shapes[1]['w'].shape, ())

  def test_compiles_once(self):
    calls = []

    def fn(p, x):
      calls.append(1)
      return jax.lax.scan(lambda c, w: (c @ w, None), x, p['w'])[0]
    run = jax.jit(trace.hooked(fn, count))
    for seed in range(3):
      run({'w': normal(2, 8, 8, seed=seed)}, normal(3, 8, seed=seed))
    self.assertLen(calls, 1)
    self.assertEqual(run._cache_size(), 1)


class CustomDerivativeTest(parameterized.TestCase):

  def _twice(self):
    """sin, with a derivative that is plainly not cos."""
    @jax.custom_jvp
    def by_jvp(x):
      return jnp.sin(x)
    by_jvp.defjvp(lambda primals, tangents: (jnp.sin(primals[0]), 7.0 * tangents[0]))

    @jax.custom_vjp
    def by_vjp(x):
      return jnp.sin(x)
    by_vjp.defvjp(lambda x: (jnp.sin(x), None), lambda _, g: (7.0 * g,))
    return {'jvp': by_jvp, 'vjp': by_vjp}

  @parameterized.product(kind=['jvp', 'vjp'], where=['weight', 'activation', 'scan', 'remat'])
  def test_derivatives_survive(self, kind, where):
    f = self._twice()[kind]
    fn = {'weight': lambda p, x: x @ f(p['w']),
          'activation': lambda p, x: f(x @ p['w']),
          'scan': lambda p, x: jax.lax.scan(lambda c, _: (f(c @ f(p['w'])), None), x, None, 2)[0],
          'remat': lambda p, x: jax.checkpoint(lambda w: f(x @ f(w)))(p['w'])}[where]
    params, x = {'w': normal(8, 8)}, normal(3, 8, seed=1)
    loss = lambda run: jax.grad(lambda p: run(p).sum())(params)
    chex.assert_trees_all_equal(loss(lambda p: trace.hooked(fn, plain)(p, x)[0]),
                                loss(lambda p: fn(p, x)))
    packed = {'w': stored.factors(params['w'])}
    ours = jax.grad(lambda p: trace.dispatch(fn)(p, x).sum())(packed)
    theirs = jax.grad(lambda p: fn({'w': p['w'].todense()}, x).sum())(packed)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)

  def test_one_around_a_contraction_is_replaced_and_said_once(self):
    @jax.custom_vjp
    def product(x, w):
      return x @ w
    product.defvjp(lambda x, w: (x @ w, None), lambda _, g: (g, g))
    fn = lambda p, x: product(x, p['w']) + product(x, p['w'])
    run = jax.jit(trace.hooked(fn, count))
    with self.assertLogs('absl', 'WARNING') as logs:
      out, aux = run({'w': normal(8, 8)}, normal(3, 8))
    self.assertLen(logs.output, 1)
    self.assertIn('custom_vjp_call', logs.output[0])
    self.assertEqual(aux['w'], 2)
    chex.assert_trees_all_close(out, fn({'w': normal(8, 8)}, normal(3, 8)), rtol=1e-6)


class AuxTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('once', lambda p, x: x @ p['w'], 1),
      ('twice', lambda p, x: x @ p['w'] @ p['w'], 2),
      ('in jit and outside', lambda p, x: jax.jit(jnp.matmul)(x, p['w']) @ p['w'], 2),
      ('shared by steps', lambda p, x: jax.lax.scan(
          lambda c, _: (c @ p['w'], None), x, None, length=5)[0], 5),
      ('in a while', lambda p, x: jax.lax.fori_loop(0, 4, lambda i, c: c @ p['w'], x), 4),
      ('in nested loops', lambda p, x: jax.lax.fori_loop(0, 4, lambda i, c: jax.lax.scan(
          lambda c, _: (c @ p['w'], None), c, None, length=3)[0], x), 12),
      ('in no step', lambda p, x: jax.lax.fori_loop(0, 0, lambda i, c: c @ p['w'], x), 0),
      ('branch taken', lambda p, x: jax.lax.cond(True, lambda: x @ p['w'], lambda: x), 1),
      ('branch not taken', lambda p, x: jax.lax.cond(
          x[0, 0] > 1e9, lambda: x @ p['w'], lambda: x), 0),
      ('some steps', lambda p, x: jax.lax.scan(lambda c, i: (jax.lax.cond(
          i % 2 == 0, lambda: c @ p['w'], lambda: c), None), x, jnp.arange(5))[0], 3),
      ('remat in a scan in remat', jax.checkpoint(lambda p, x: jax.lax.scan(jax.checkpoint(
          lambda c, _: (c @ p['w'], None)), x, None, length=3)[0]), 3))
  def test_counts(self, fn, expected):
    _, aux = jax.jit(trace.hooked(fn, count))({'w': normal(8, 8)}, normal(3, 8))
    self.assertEqual(int(aux['w']), expected)

  def test_layers_are_stacked(self):
    index = lambda c, x, w: (c.compute(x, w), x[0, 0])
    fn = lambda p, x: jax.lax.scan(lambda c, w: (c + 1 + 0 * (c @ w), None), x, p['w'])[0]
    _, aux = trace.hooked(fn, index)({'w': normal(4, 8, 8)}, jnp.zeros((3, 8)))
    np.testing.assert_array_equal(aux['w'], np.arange(4.0))
    two = lambda p, x: jax.lax.scan(lambda c, m: jax.lax.scan(
        lambda c, w: (c + 1 + 0 * (c @ w), None), c, m), x, p['w'])[0]
    _, aux = trace.hooked(two, index)({'w': normal(2, 3, 8, 8)}, jnp.zeros((3, 8)))
    np.testing.assert_array_equal(aux['w'], np.arange(6.0).reshape(2, 3))

  def test_layers_that_are_skipped_are_zero(self):
    index = lambda c, x, w: (c.compute(x, w), 1 + x[0, 0])
    fn = lambda p, x: jax.lax.scan(lambda c, wi: (jax.lax.cond(
        wi[1] == 1, lambda: c + 0 * (c @ wi[0]), lambda: c), None), x, (p['w'], jnp.arange(3)))[0]
    _, aux = trace.hooked(fn, index)({'w': normal(3, 8, 8)}, jnp.zeros((3, 8)))
    np.testing.assert_array_equal(aux['w'], [0.0, 1.0, 0.0])

  def test_merge_without_identity_and_of_trees(self):
    largest = lambda c, x, w: (c.compute(x, w), {'max': x.max(), 'min': x.min()})
    merge = lambda a, b: {'max': jnp.maximum(a['max'], b['max']),
                          'min': jnp.minimum(a['min'], b['min'])}
    fn = lambda p, x: jax.lax.fori_loop(0, 3, lambda i, c: c + 1 + 0 * (c @ p['w']), x)
    _, aux = trace.hooked(fn, largest, merge)({'w': normal(8, 8)}, jnp.full((3, 8), 5.0))
    self.assertEqual((float(aux['w']['max']), float(aux['w']['min'])), (7.0, 5.0))

  def test_gradient_reaches_aux(self):
    size = lambda c, x, w: (c.compute(x, w), jnp.square(x).sum())
    fn = lambda p, x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ p['w']), None), x, None, 2)[0]
    grad = jax.grad(lambda p: trace.hooked(fn, size)(p, normal(3, 8))[1]['w'])({'w': normal(8, 8)})
    wanted = jax.grad(lambda w: jnp.square(jnp.tanh(normal(3, 8) @ w)).sum())(normal(8, 8))
    chex.assert_trees_all_close(grad['w'], wanted, rtol=1e-5)

  def test_vmap_of_branches(self):
    fn = lambda p, x: jax.lax.cond(x[0] > 0, lambda: x @ p['w'], lambda: x)
    x = jnp.ones((4, 8)).at[1].set(-1)
    _, aux = jax.vmap(trace.hooked(fn, count), (None, 0))({'w': normal(8, 8)}, x)
    np.testing.assert_array_equal(aux['w'], [1, 0, 1, 1])

  def test_an_altered_result(self):
    double = lambda c, x, w: (2 * c.compute(x, w), None)
    fn = lambda p, x: p['w'] @ x.T
    out, aux = trace.hooked(fn, double)({'w': normal(4, 8)}, normal(3, 8))
    np.testing.assert_allclose(out, 2 * normal(4, 8) @ normal(3, 8).T, rtol=1e-6)
    self.assertEmpty(aux)

  def test_errors_name_the_weight(self):
    with self.assertRaisesRegex(ValueError, r"shape \(3,\) for the dot with 'w'"):
      trace.hooked(lambda p, x: x @ p['w'], lambda c, x, w: (x[:, 0], None))(
          {'w': normal(8, 4)}, normal(3, 8))
    both = lambda p, x: jax.lax.scan(lambda c, w: (c @ w, None), x, p['w'])[0] @ p['w'][0] + (
        jnp.einsum('bi,lio->bo', x, p['w']))
    rows = lambda c, x, w: (c.compute(x, w), jnp.zeros(()))
    with self.assertRaisesRegex(ValueError, "'w' is used both"):
      trace.hooked(both, rows)({'w': normal(2, 8, 8)}, normal(3, 8))
    with self.assertRaisesRegex(ValueError, 'Several leaves are called'):
      trace.hooked(lambda p, x: x, plain)({'a/b': normal(2, 2), 'a': {'b': normal(2, 2)}}, 1)


if __name__ == '__main__':
  absltest.main()
