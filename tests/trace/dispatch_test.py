"""Stock models on packed weights: outputs, gradients, and what is said in the log."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import formats
from jaxsparse import trace
from tests.trace import models
from tests.trace import stored


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


class DispatchTest(parameterized.TestCase):

  @parameterized.named_parameters((model, model) for model in models.ALL)
  def test_models_run_on_mixed_formats_as_on_dense_weights(self, model):
    self._check(model, *stored.MAKERS.values())

  def test_layouts_that_the_products_do_not_share_are_densified(self):
    # Packed by the default roles: attention's products reduce other axes.
    fn, params, x = models.nnx_transformer()
    packed = stored.pack(params, dict.fromkeys(trace.axes_of(fn, params, x)),
                         *stored.MAKERS.values())
    with self.assertLogs('absl', 'WARNING') as logs:
      out = jax.jit(trace.dispatch(fn))(packed, x)
    chex.assert_trees_all_close(out, jax.jit(fn)(formats.densify(packed), x), rtol=1e-4, atol=1e-5)
    self.assertLen(set(logs.output), len(logs.output))

  @parameterized.named_parameters(
      (f'{model}_{make}', model, make) for model, make in itertools.product(
          models.ALL, stored.MAKERS))
  @pytest.mark.slow
  def test_models_run_on_each_format_as_on_dense_weights(self, model, make):
    self._check(model, stored.MAKERS[make])

  def _check(self, model, *makers):
    fn, params, x = models.ALL[model]()
    packed = stored.pack(params, trace.axes_of(fn, params, x), *makers)
    kept, rest = stored.arrays_of(packed)
    self.assertTrue(any(map(formats.is_format, kept)))
    run = lambda wrap: lambda p, x: wrap(fn)(stored.with_arrays(p, rest), x)
    stored.compare(run(trace.dispatch), run(lambda f: f), kept, x)

  def test_dense_weights_are_left_alone(self):
    fn, params, x = models.bare()
    np.testing.assert_array_equal(trace.dispatch(fn)(params, x), fn(params, x))

  def test_models_without_packed_weights_lower_to_the_same_program(self):
    for name, make in models.ALL.items():
      fn, params, x = make()
      kept, rest = stored.arrays_of(params)
      lowered = lambda wrap: jax.jit(  # One name, for the module bears it.
          lambda p, x: wrap(fn)(stored.with_arrays(p, rest), x)).lower(kept, x).as_text('hlo')
      with self.subTest(name):
        self.assertEqual(lowered(trace.dispatch), lowered(lambda f: f))

  @parameterized.named_parameters(
      ('reshape', lambda p, x: jnp.einsum(
          'bij,ijo->bo', x.reshape(3, 2, 4), p['w'].reshape(2, 4, 4))),
      ('elementwise', lambda p, x: x @ (p['w'] * 2)),
      ('scan over the reduction', lambda p, x: jax.lax.scan(
          lambda c, row: (c + row, None), jnp.zeros(4), p['w'])[0]),
      ('contraction of the output axis', lambda p, x: jnp.ones((2, 4)) @ p['w'].T),
      ('two uses', lambda p, x: x @ (p['w'] * 2) @ (p['w'] + 1).T),
      ('concatenation', lambda p, x: x @ jnp.concatenate([p['w'], p['w']], 1)),
      ('inside jit, remat and cond', lambda p, x: jax.jit(jax.checkpoint(lambda w: jax.lax.cond(
          x.sum() > 0, lambda: x @ jnp.abs(w), lambda: x @ w)))(p['w'])))
  def test_unknown_operations_fall_back_and_say_so_once(self, fn):
    params, x = {'w': stored.int8(normal(8, 4))}, normal(3, 8, seed=1)
    run = jax.jit(trace.dispatch(fn))
    with self.assertLogs('absl', 'WARNING') as logs:
      out = run(params, x)
      run(params, x)
    self.assertLen(logs.output, 1)
    self.assertIn('w: ', logs.output[0])
    chex.assert_trees_all_close(out, fn(formats.densify(params), x), rtol=1e-5)

  def test_known_operations_are_silent(self):
    w = normal(2, 8, 4)
    params = {'w': stored.int8(w)}

    def fn(p, x):
      w = jax.lax.optimization_barrier(p['w'].astype(jnp.bfloat16).astype(jnp.float32))
      w = jax.lax.stop_gradient(jnp.swapaxes(w, 1, 2))
      first = x @ w[0].T
      return first + jax.lax.scan(lambda c, m: (c, x @ m), 0, jnp.swapaxes(w, 1, 2))[1].sum(0)

    with self.assertNoLogs('absl', 'WARNING'):
      out = trace.dispatch(fn)(params, normal(3, 8, seed=1))
    chex.assert_trees_all_close(out, fn(formats.densify(params), normal(3, 8, seed=1)), rtol=2e-2,
                                atol=2e-2)

  @parameterized.named_parameters(
      ('left', lambda p, x: p['w'] @ x.T, (4, 8), ((1,), (0,))),
      ('vector', lambda p, x: p['w'] @ x[0], (4, 8), ((1,), (0,))),
      ('transposed', lambda p, x: x @ p['w'].T, (4, 8), ((1,), (0,))),
      ('three axes out', lambda p, x: jnp.einsum('bi,ihd->hbd', x, p['w']), (8, 2, 3),
       ((0,), (1, 2))),
      ('three axes in', lambda p, x: jnp.einsum('bhd,ohd->ob', x.reshape(3, 2, 4), p['w']),
       (5, 2, 4), ((1, 2), (0,))),
      ('experts', lambda p, x: jnp.einsum('ebi,eio->beo', jnp.stack([x, 2 * x]), p['w']),
       (2, 8, 4), ((1,), (2,))),
      ('ragged experts', lambda p, x: jax.lax.ragged_dot(x, p['w'], jnp.array([0, 2])),
       (2, 8, 4), ((1,), (2,))),
      ('layers of ragged experts', lambda p, x: jax.lax.scan(
          lambda c, w: (jax.lax.ragged_dot(c, w, jnp.array([1, 1])), c), x, p['w'])[0],
       (3, 2, 8, 8), ((2,), (3,))),
      ('experts, last axis', lambda p, x: jnp.einsum('ebi,ioe->boe', jnp.stack([x, 2 * x]), p['w']),
       (8, 4, 2), ((0,), (1,))),
      ('experts that share an input', lambda p, x: jax.vmap(lambda w: x @ w)(p['w']),
       (2, 8, 4), ((1,), (2,))),
      ('experts that share an input, left', lambda p, x: jnp.einsum('hio,bi->obh', p['w'], x),
       (2, 8, 4), ((1,), (2,))),
      ('vmapped stack', lambda p, x: jax.vmap(lambda w, x: w @ x)(p['w'], x), (3, 4, 8),
       ((2,), (1,))),
      ('indexed stack', lambda p, x: x @ p['w'][1] + x @ p['w'][0], (2, 8, 4), ((1,), (2,))),
      ('iterated stack', lambda p, x: sum(x @ w for w in p['w']), (2, 8, 4), ((1,), (2,))),
      ('dynamic index', lambda p, x: jax.lax.fori_loop(
          0, 2, lambda i, y: y + x @ p['w'][i], jnp.zeros((3, 4))), (2, 8, 4), ((1,), (2,))),
      ('nested scans', lambda p, x: jax.lax.scan(lambda c, m: jax.lax.scan(
          lambda c, w: (jnp.tanh(c @ w), None), c, m), x, p['w'])[0], (2, 2, 8, 8), ((2,), (3,))),
      ('reverse unrolled scan', lambda p, x: jax.lax.scan(
          lambda c, w: (jnp.tanh(c @ w), c), x, p['w'], reverse=True, unroll=2), (4, 8, 8),
       ((1,), (2,))),
      ('carried', lambda p, x: jax.lax.scan(
          lambda c, _: ((c[0], jnp.tanh(c[1] @ c[0])), c[1]), (p['w'], x), None, length=3)[1],
       (8, 8), ((0,), (1,))),
      ('while', lambda p, x: jax.lax.fori_loop(
          0, 3, lambda i, c: jnp.tanh(c @ p['w']), x), (8, 8), ((0,), (1,))),
      ('lookup', lambda p, x: jnp.take(p['w'], jnp.array([[0, 3], [7, 0]]), axis=0), (8, 4),
       ((0,), (1,))),
      ('lookup of one row', lambda p, x: p['w'][jnp.argmax(x[0])], (8, 4), ((0,), (1,))),
      ('lookup of one row under vmap', lambda p, x: jax.vmap(lambda i: p['w'][i])(
          jnp.array([[0, 3], [-1, 7]])), (8, 4), ((0,), (1,))),
      ('lookup with wrapped index', lambda p, x: p['w'][jnp.array([-1, 2])], (8, 4), ((0,), (1,))),
  )
  def test_every_form_of_product(self, fn, shape, axes):
    w = normal(*shape)
    x = normal(3, 8, seed=1)
    axes = trace.axes_of(fn, {'w': w}, x).get('w') or axes
    self.assertEqual(tuple(axes), axes)
    for make in (stored.int8, stored.factors):
      with self.assertNoLogs('absl', 'WARNING'):
        if 'while' in self.id() or 'dynamic' in self.id():
          out = jax.jit(trace.dispatch(fn))({'w': make(w, axes)}, x)
          expected = fn({'w': make(w, axes).todense()}, x)
          chex.assert_trees_all_close(out, expected, rtol=1e-5, atol=1e-5)
        else:
          stored.compare(trace.dispatch(fn), fn, {'w': make(w, axes)}, x)

  def test_lookup_out_of_range_is_filled_as_by_take(self):
    fn = lambda p, ids: jnp.take(p['w'], ids, axis=0)
    params, ids = {'w': stored.int8(normal(8, 4))}, jnp.array([0, 8, -9, -1])
    out = trace.dispatch(fn)(params, ids)
    np.testing.assert_allclose(out, fn(formats.densify(params), ids), rtol=1e-6)
    self.assertTrue(np.isnan(out[1:3]).all())

  @parameterized.parameters('same', 'valid')
  def test_transposed_convolution_kernels(self, padding):
    # Equinox keeps kernels [out, in, h, w].
    def fn(p, x):
      return jax.lax.conv_general_dilated(x, p['w'].transpose(2, 3, 1, 0), (2, 1), padding.upper(),
                                          rhs_dilation=(1, 2),
                                          dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    w, x = normal(4, 8, 3, 3), normal(2, 9, 8, 8, seed=1)
    axes = trace.axes_of(fn, {'w': w}, x)['w']
    self.assertEqual(axes, ((1, 2, 3), (0,)))
    for make in (stored.int8, stored.factors):
      stored.compare(trace.dispatch(fn), fn, {'w': make(w, axes)}, x)

  def test_bfloat16(self):
    fn = lambda p, x: x.astype(jnp.bfloat16) @ p['w'].astype(jnp.bfloat16)
    packed = [{'w': make(normal(8, 4))} for make in stored.MAKERS.values()]
    x = normal(3, 8, seed=1)
    outs = jax.jit(lambda packed: [trace.dispatch(fn)(p, x) for p in packed])(packed)
    for out, p in zip(outs, packed):
      self.assertEqual(out.dtype, jnp.bfloat16)
      chex.assert_trees_all_close(out.astype(jnp.float32),
                                  fn(formats.densify(p), x).astype(jnp.float32),
                                  rtol=3e-2, atol=6e-2)

  def test_weights_as_outputs_are_dense(self):
    packed = {'w': stored.two_four(normal(8, 4))}
    out = trace.dispatch(lambda p, x: (p['w'], {'t': p['w'].T}, p['w'], x))(packed, jnp.ones(2))
    dense = packed['w'].todense()
    chex.assert_trees_all_equal(out, (dense, {'t': dense.T}, dense, jnp.ones(2)))

  def test_static_arguments_and_keys(self):
    def fn(p, x, train, *, key=None, mode='sum', act=jnp.tanh):
      x = act(x @ p['w'])
      x = x + jax.random.normal(key, x.shape) if train else x
      return x.sum() if mode == 'sum' else x
    packed, x, key = {'w': stored.int8(normal(8, 4))}, normal(3, 8), jax.random.key(0)
    dense = formats.densify(packed)
    run = trace.dispatch(fn)
    for train, mode in itertools.product((True, False), ('sum', 'none')):
      chex.assert_trees_all_close(run(packed, x, train, key=key, mode=mode),
                                  fn(dense, x, train, key=key, mode=mode), rtol=1e-4)

  def test_compiles_once_and_vmaps(self):
    calls = []

    def fn(p, x):
      calls.append(1)
      return x @ p['w']

    run, packed = jax.jit(trace.dispatch(fn)), {'w': stored.int8(normal(8, 4))}
    run(packed, normal(3, 8))
    run(jax.tree.map(lambda a: a + 0, packed), normal(3, 8, seed=2))
    self.assertLen(calls, 1)
    batch = normal(5, 3, 8)
    chex.assert_trees_all_close(jax.vmap(trace.dispatch(fn), (None, 0))(packed, batch),
                                batch @ packed['w'].todense(), rtol=1e-5)
    _, out = jax.lax.scan(lambda c, x: (c, trace.dispatch(fn)(packed, x)), 0, batch)
    chex.assert_trees_all_close(out, batch @ packed['w'].todense(), rtol=1e-5)

  @parameterized.named_parameters(stored.MAKERS.items())
  def test_stacks_that_vmap_and_scan_slice_outside(self, make):
    packed, x = {'w': make(normal(3, 8, 8) / 4)}, normal(5, 8)
    fn = lambda p, x: jnp.tanh(x @ p['w'])
    run, dense = trace.dispatch(fn), formats.densify(packed)
    chex.assert_trees_all_close(jax.vmap(run, (0, None))(packed, x),
                                jax.vmap(fn, (0, None))(dense, x), atol=1e-5)
    layers = lambda f, p: jax.lax.scan(lambda x, p: (f(p, x), None), x, p)[0]
    chex.assert_trees_all_close(layers(run, packed), layers(fn, dense), atol=1e-5)
    one = jax.tree.map(lambda a: a[1], packed)
    chex.assert_trees_all_close(run(one, x), fn({'w': dense['w'][1]}, x), atol=1e-5)

  def test_a_slice_along_an_axis_that_does_not_lead_names_its_weight(self):
    packed = {'w': stored.int8(normal(8, 4, 3), ((0,), (1,)))}
    with self.assertRaisesRegex(ValueError, r'^w: .*matrix \(8, 4\), which is neither'):
      trace.dispatch(lambda p, x: x @ p['w'])(jax.tree.map(lambda a: a[0], packed), normal(5, 8))

  def test_zero_rows(self):
    packed = {'w': stored.int8(normal(8, 4))}
    out = trace.dispatch(lambda p, x: x @ p['w'])(packed, jnp.zeros((0, 8)))
    self.assertEqual(out.shape, (0, 4))


if __name__ == '__main__':
  absltest.main()
