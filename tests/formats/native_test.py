"""Packed models laid out for native kernels: what is chosen, equality, stacks, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from jaxsparse import formats
from jaxsparse.kernels.native import library

pytestmark = pytest.mark.skipif(not library.available(), reason=library.status().reason)

_BLOCK_INT8 = jsp.chain(jsp.magnitude(0.75, pattern=jsp.block(4, 16)), jsp.quantize('int8'))
# What packs a weight, the kernel it gets, and the relative error that rounded activations may add.
_CASES = {
  'vectors': (jsp.magnitude(0.75, pattern=jsp.block(1, 16)), 'vectors', 1e-5),
  'blocks': (jsp.magnitude(0.75, pattern=jsp.block(8, 32)), 'vectors', 1e-5),
  'unstructured': (jsp.magnitude(0.9), 'columns', 1e-5),
  'int8': (jsp.quantize('int8'), 'int8', 0.02),
  'int8 tiles': (_BLOCK_INT8, 'int8_tiles', 0.02),
  'int4': (jsp.quantize('int4', group=16), 'int4', 0.02),
  'int4 a column': (jsp.quantize('int4'), 'int4', 0.02),
}


def _packed(transform, shape, name='kernel'):
  w = jax.random.normal(jax.random.key(0), shape)
  return transform.pack(*transform.init({name: w}))


@pytest.mark.parametrize('case', _CASES)
def test_the_same_weight_and_product(case):
  transform, kernel, tolerance = _CASES[case]
  stored = _packed(transform, (64, 96))
  ready = jsp.prepare(stored)
  assert ready['kernel'].kernel == kernel
  np.testing.assert_allclose(ready['kernel'].todense(), stored['kernel'].todense(), rtol=1e-6)
  if kernel in ('vectors', 'int8', 'int4'):
    assert jsp.nbytes(ready) <= 1.05 * jsp.nbytes(stored) + 8 * 96
  x = jax.random.normal(jax.random.key(1), (5, 64))
  fn = jax.jit(jsp.dispatch(lambda p, x: jnp.tanh(x @ p['kernel'])))
  expected = jnp.tanh(x @ stored['kernel'].todense())
  size = float(jnp.abs(x @ stored['kernel'].todense()).max())
  np.testing.assert_allclose(fn(ready, x), expected, atol=tolerance * size)
  assert set(ready['kernel'].matmuls()) == {'stored', 'dense'}
  cost = ready['kernel'].multiply_adds(5)
  assert cost.ideal <= cost.executed


@pytest.mark.parametrize('case', ['vectors', 'unstructured', 'int8 tiles', 'int4'])
def test_stacks_of_layers(case):
  transform, kernel, tolerance = _CASES[case]
  stored = _packed(transform, (3, 32, 48))
  ready = jsp.prepare(stored)
  assert ready['kernel'].kernel == kernel
  dense = stored['kernel'].todense()
  np.testing.assert_allclose(ready['kernel'].todense(), dense, rtol=1e-6)
  x = jax.random.normal(jax.random.key(1), (2, 32))

  def layers(params, x):
    return jax.lax.scan(lambda c, w: (c, x @ w), 0, params['kernel'])[1]

  found = jax.jit(jsp.dispatch(layers))(ready, x)
  expected = jnp.einsum('br,lro->lbo', x, dense)
  np.testing.assert_allclose(found, expected, atol=tolerance * float(jnp.abs(expected).max()))


def test_int8_where_integers_have_64_bits():
  with jax.enable_x64(True):
    transform = jsp.quantize('int8')
    w = jnp.asarray(np.random.default_rng(0).normal(size=(70, 40)), jnp.float32)
    stored = transform.pack(*transform.init({'w': w}))['w']
    prepared = jsp.prepare(stored)
    assert prepared.operands['sums'].dtype == jnp.int32
    x = jnp.ones((3, 70), jnp.float32)   # rounded to eight bits without error
    np.testing.assert_allclose(prepared.matmul(x), stored.matmul(x), rtol=1e-5, atol=1e-4)


def test_input_scales_of_awq_are_kept():
  codes = jnp.ones((1, 16, 4), jnp.int8)[0]
  layout = _packed(jsp.quantize('int4'), (16, 4))['kernel'].layout
  ready = formats.NativeArray.of_int4(codes, jnp.ones((1, 4)), layout,
                                      input_scale=jnp.full((16, 1), 2.0))
  np.testing.assert_allclose(ready.todense(), 0.5 * np.ones((16, 4)))
  np.testing.assert_allclose(ready.matmul(jnp.ones((1, 16))), 8 * np.ones((1, 4)), rtol=1e-6)


def test_the_rest_stays_as_it_is():
  others = {
    'dense': jnp.ones((4, 4)),
    'nm': _packed(jsp.nm(2, 4), (16, 16))['kernel'],
    'asymmetric': _packed(jsp.quantize('uint8'), (16, 16))['kernel'],
    'nf4': _packed(jsp.nf4(), (64, 16))['kernel'],
    'half dense': _packed(jsp.magnitude(0.5), (16, 16))['kernel'],
  }
  ready = jsp.prepare(others)
  for name, weight in others.items():
    assert ready[name] is weight, name
  assert jax.tree.structure(jsp.prepare({})) == jax.tree.structure({})


def test_sparse_weights_are_prepared_outside_jit():
  stored = _packed(jsp.magnitude(0.9), (16, 16))
  with pytest.raises(ValueError, match='outside jit'):
    jax.jit(jsp.prepare)(stored)
