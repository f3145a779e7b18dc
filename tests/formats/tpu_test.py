"""Packed integers laid out for TPUs: what is taken, equal products, what compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from jaxsparse import formats
from tests.kernels import aot

# What packs a weight of 70 rows, and the dtype and backend it gets.
_CASES = {
  'int8': (jsp.quantize('int8'), jnp.int8, 'xla'),
  'int8 a matrix': (jsp.quantize('int8', granularity='tensor'), jnp.int8, 'xla'),
  'int4': (jsp.quantize('int4'), jnp.int4, 'xla'),
  'int3 in groups': (jsp.quantize('int3', group=16), jnp.int4, 'xla'),
  'int4 in groups with a tail': (jsp.quantize('int4', group=32), jnp.int4, 'pallas_tpu'),
  'int8 in one group': (jsp.quantize('int8', group=128), jnp.int8, 'xla'),
}

_SPARSE_INT8 = jsp.chain(jsp.nm(2, 4), jsp.quantize('int8'))


def _packed(transform, shape=(70, 24), dtype=jnp.float32):
  w = jax.random.normal(jax.random.key(0), shape, dtype)
  return transform.pack(*transform.init({'kernel': w}))


@pytest.mark.parametrize('case', _CASES)
@pytest.mark.parametrize('batch', [(), (2,)])
def test_the_same_weight_and_product(case, batch):
  transform, dtype, backend = _CASES[case]
  stored = _packed(transform, (*batch, 70, 24))
  ready = jsp.prepare(stored, 'tpu')['kernel']
  assert isinstance(ready, formats.TPUArray)
  assert (ready.codes.dtype, ready.backend) == (dtype, backend)
  bits = 4 if dtype == jnp.int4 else 8
  assert jsp.nbytes(ready) == ready.nbytes == ready.codes.size * bits // 8 + ready.scale.nbytes
  dense = stored['kernel'].todense()
  np.testing.assert_array_equal(ready.todense(), dense)
  if backend == 'xla':
    x = jax.random.normal(jax.random.key(1), (*batch, 5, 70))
    product = jax.jit(jsp.dispatch(lambda p, x: x @ p['kernel']))({'kernel': ready}, x)
    np.testing.assert_allclose(product, x @ dense, atol=1e-4)


def test_tables_are_read_row_by_row():
  stored = _packed(jsp.quantize('int4', group=16))['kernel']
  ready = jsp.prepare({'table': stored}, 'tpu')['table']
  ids = jnp.array([0, 69, -1, 33])
  np.testing.assert_array_equal(formats.take(ready, ids), stored.todense()[ids])


def test_activations_are_contracted_as_integers():
  transform = jsp.quantize('int4')
  stored = _packed(transform)
  x = jax.random.normal(jax.random.key(1), (5, 70))
  fn = lambda p, x: x @ p['kernel']
  rounded = jax.jit(jsp.quantize_activations(fn, 'int8'))
  ready = jsp.prepare(stored, 'tpu')
  np.testing.assert_array_equal(rounded(ready, x), rounded(stored, x))
  assert 'preferred_element_type=int32' in str(jax.make_jaxpr(rounded)(ready, x))


def test_the_rest_stays_as_it_is():
  others = {
    'dense': jnp.ones((4, 4)),
    'nm': _packed(jsp.nm(2, 4), (64, 24))['kernel'],
    'asymmetric': _packed(jsp.quantize('uint8'))['kernel'],
    'nf4': _packed(jsp.nf4())['kernel'],
    'sparse integers': _packed(_SPARSE_INT8, (64, 24))['kernel'],
  }
  ready = jsp.prepare(others, 'tpu')
  for name, weight in others.items():
    assert ready[name] is weight, name
  with pytest.raises(ValueError, match='cpu, gpu, tpu or None'):
    jsp.prepare(others, 'abacus')


@pytest.mark.tpu_aot
@pytest.mark.parametrize('chip', aot.CHIPS)
def test_a_packed_model_reads_codes_and_writes_nothing_else(chip):
  # Inputs are rounded, 8 rows of 2048; nothing of a weight's size is written.
  aot.check_codes_alone(aot.compiled()[chip]['packed models'],
                        temporaries={'int8 x int8': 8 * 2048 * 4})
