"""Native products against float64, their gradients, and everything a program may do with them."""

import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxsparse as jsp
from jaxsparse.kernels.native import activations
from jaxsparse.kernels.native import columns
from jaxsparse.kernels.native import library
from jaxsparse.kernels.native import nibbles
from jaxsparse.kernels.native import tiles
from jaxsparse.kernels.native import vectors

_NATIVE = pytest.mark.skipif(not library.available(), reason=library.status().reason)
_DEPTH, _OUTPUTS = 37, 50


def _kept(rng, height, width, density=0.3):
  grid = rng.random((-(-_DEPTH // height), -(-_OUTPUTS // width))) < density
  return np.repeat(np.repeat(grid, height, 0), width, 1)[:_DEPTH, :_OUTPUTS]


def _kernels():
  """By name: the function, its operands and static arguments, the matrix, whether x is rounded."""
  rng = np.random.default_rng(0)
  w = rng.normal(size=(_DEPTH, _OUTPUTS)).astype(np.float32)
  codes = rng.integers(-128, 128, w.shape).astype(np.int8)
  scale = rng.uniform(0.1, 1, _OUTPUTS).astype(np.float32)
  low = rng.integers(-8, 8, w.shape).astype(np.int8)
  groups = rng.uniform(0.1, 1, (5, _OUTPUTS)).astype(np.float32)
  found = {}
  dense = w * _kept(rng, 1, 16)
  found['vectors'] = jsp.kernels.vector_sparse_matmul, vectors.pack(dense, 16), {}, dense, False
  dense = w * _kept(rng, 1, 1)
  found['columns'] = jsp.kernels.csr_matmul, columns.pack(dense), {}, dense, False
  found['int8'] = (jsp.kernels.int8_matmul, tiles.pack(codes, scale), {}, codes * scale, True)
  some = codes * _kept(rng, 4, 16)
  found['tiles'] = (
    jsp.kernels.int8_tile_matmul, tiles.pack_sparse(some, scale), {}, some * scale, True)
  wide = np.repeat(groups, 8, 0)[:_DEPTH]
  found['int4'] = (
    jsp.kernels.int4_matmul, nibbles.pack(low, groups), {'group': 8}, low * wide, True)
  return found


_KERNELS = _kernels()
_EACH = pytest.mark.parametrize('name', _KERNELS)


def _call(name):
  call, operands, static, dense, rounded = _KERNELS[name]
  return lambda x, o=operands: call(x, **o, outputs=_OUTPUTS, **static)


def _expected(name, x):
  dense, rounded = np.float64(_KERNELS[name][3]), _KERNELS[name][4]
  x = np.float64(x)
  if rounded:
    most = np.abs(x).max(-1, keepdims=True)
    x = np.rint(x * (127 / np.where(most > 0, most, 1))) * (most / 127)
  return x @ dense


def _rows(n, seed=1):
  return np.random.default_rng(seed).normal(size=(n, _DEPTH)).astype(np.float32)


@_EACH
@pytest.mark.parametrize('rows', [1, 9, 131])
def test_equals_float64(name, rows):
  x = _rows(rows)
  expected = _expected(name, x)
  tolerance = 1e-5 * np.abs(expected).max()
  np.testing.assert_allclose(_call(name)(x), expected, atol=tolerance, rtol=1e-5)


@_EACH
def test_zero_nan_and_infinity(name):
  x = np.zeros((4, _DEPTH), np.float32)
  x[1, 2], x[2, 3] = np.nan, np.inf
  x[3] = 1e-37
  y = np.asarray(_call(name)(x))
  assert (y[0] == 0).all() and np.abs(y[3]).max() < 1e-33
  if _KERNELS[name][4]:
    assert np.isnan(y[1:3]).all()
  else:
    kept = np.asarray(_KERNELS[name][3]) != 0
    assert np.isnan(y[1, kept[2]]).all() and not np.isnan(y[1, ~kept.any(0)]).any()


def test_rounded_activations_are_within_half_a_step():
  x = _rows(5)
  codes, scale = activations.rounded(jnp.asarray(x))
  assert np.abs(np.asarray(codes) * np.asarray(scale) - x).max() <= np.max(scale) * 0.5001
  assert np.abs(np.asarray(codes)).max() == 127


@_EACH
def test_gradients(name):
  call, operands, static, dense, rounded = _KERNELS[name]
  x = jnp.asarray(_rows(3))
  field = 'scale' if rounded else 'values'

  def f(x, values):
    return call(x, **{**operands, field: values}, outputs=_OUTPUTS, **static)

  g = jnp.asarray(np.random.default_rng(2).normal(size=(3, _OUTPUTS)), jnp.float32)
  dx, dvalues = jax.jit(lambda x, v: jax.vjp(f, x, v)[1](g))(x, jnp.asarray(operands[field]))
  np.testing.assert_allclose(dx, np.float64(g) @ np.float64(dense).T, atol=1e-3)
  assert dvalues.shape == operands[field].shape
  # The product is linear in the values: its slope along them is itself, up to x's rounding.
  slope = float((dvalues * operands[field]).sum())
  tolerance = 0.02 * float(jnp.abs(g * f(x, operands[field])).sum())
  assert abs(slope - float((g * f(x, operands[field])).sum())) <= tolerance
  if not rounded:
    check_grads(jax.jit(f), (x, jnp.asarray(operands[field])), order=1, modes=['rev'], rtol=1e-2)


@_EACH
def test_vmap_scan_remat_donation_and_dtypes(name):
  call = _call(name)
  operands = {k: jnp.asarray(v) for k, v in _KERNELS[name][1].items()}
  x = jnp.asarray(_rows(6)).reshape(2, 3, _DEPTH)
  expected = np.asarray(call(x))
  assert expected.shape == (2, 3, _OUTPUTS)

  def everything(x):
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), operands)
    return {
      'rows': jax.vmap(call)(x),
      'weights': jax.vmap(call)(x, stacked),
      'scan': jax.lax.scan(lambda c, i: (c, jax.checkpoint(call)(i)), 0, x)[1],
      'gradient': jax.vmap(jax.grad(lambda x: jax.checkpoint(call)(x).sum()))(x),
    }

  found = jax.jit(everything, donate_argnums=0)(jnp.array(x))
  for key in ('rows', 'weights', 'scan'):
    np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-4, err_msg=key)
  assert found['gradient'].shape == x.shape
  half = call(x.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), expected, atol=0.03 * np.abs(expected).max())
  with pytest.raises(TypeError, match='floating inputs'):
    call(jnp.ones((1, _DEPTH), jnp.int32))


@pytest.mark.parametrize('name', ['vectors', 'int4'])
def test_two_devices(name):
  mesh = jax.make_mesh((2,), ('rows',), axis_types=(jax.sharding.AxisType.Auto,))
  x = jax.device_put(_rows(8), jax.NamedSharding(mesh, jax.P('rows')))
  np.testing.assert_allclose(
    jax.jit(_call(name))(x), _call(name)(_rows(8)), rtol=1e-5, atol=1e-4)


@_NATIVE
@pytest.mark.parametrize('name', ['columns', 'int8'])
def test_export_says_which_call_it_cannot_promise(name):
  x = jax.ShapeDtypeStruct((2, _DEPTH), jnp.float32)
  with pytest.raises(ValueError, match=r'(?s)custom calls whose targets.*jaxsparse_'):
    jax.export.export(jax.jit(_call(name)))(x)
  elsewhere = jax.export.export(jax.jit(_call(name)), platforms=['tpu'])(x)
  assert 'jaxsparse_' not in elsewhere.mlir_module()


@_NATIVE
@pytest.mark.parametrize('name', ['vectors', 'columns', 'tiles'])
def test_broken_indices_are_refused(name):
  operands = dict(_KERNELS[name][1])
  for field, value in (('index', 10_000), ('start', 60_000)):
    broken = np.array(operands[field])
    broken[-1] = value
    with pytest.raises(jax.errors.JaxRuntimeError, match='jaxsparse: '):
      jax.block_until_ready(_call(name)(_rows(2), {**operands, field: broken}))


def test_arguments_that_cannot_be():
  with pytest.raises(ValueError, match='16, 32 or 64 outputs long, got 8'):
    vectors.pack(np.ones((2, 8)), 8)
  with pytest.raises(ValueError, match='multiple of 8 rows, got 12'):
    jsp.kernels.int4_matmul(jnp.ones((1, 12)), **nibbles.pack(jnp.ones((12, 2)), jnp.ones((1, 2))),
                            group=12, outputs=2)
  with pytest.raises(ValueError, match='65,536 rows'):
    jax.eval_shape(lambda x: jsp.kernels.int8_matmul(x, **_KERNELS['int8'][1], outputs=_OUTPUTS),
                   jax.ShapeDtypeStruct((1, 70_000), jnp.float32))
  with pytest.raises(ValueError, match=r'Expected x \[1, R\]'):
    jsp.kernels.vector_matrix(jnp.ones((2, 3)), jnp.ones((3, 2)))


def test_one_row_times_a_matrix():
  w = np.random.default_rng(0).normal(size=(_DEPTH, _OUTPUTS)).astype(np.float32)
  y, back = jax.jit(lambda x, w: (
    jsp.kernels.vector_matrix(x, w), jax.grad(lambda w: jsp.kernels.vector_matrix(x, w).sum())(w)
  ))(_rows(1), w)
  np.testing.assert_allclose(y, np.float64(_rows(1)) @ w, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(back, np.repeat(_rows(1).T, _OUTPUTS, 1), rtol=1e-6)


def test_the_same_numbers_without_the_library():
  """Another process, with the kernels turned off, computes what this one does."""
  with_library = [np.asarray(_call(name)(_rows(3))) for name in _KERNELS]
  code = (
    'import sys, numpy as np, runpy\n'
    'g = runpy.run_path(sys.argv[1])\n'
    'assert not g["library"].available()\n'
    'np.save(sys.argv[2], np.stack([g["_call"](n)(g["_rows"](3)) for n in g["_KERNELS"]]))\n'
  )
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'y.npy')
    environment = {**os.environ, 'JAXSPARSE_NATIVE': 'off'}
    subprocess.run([sys.executable, '-c', code, __file__, str(path)], check=True, env=environment)
    without = np.load(path)
  np.testing.assert_allclose(without, np.stack(with_library), rtol=1e-5, atol=1e-4)
