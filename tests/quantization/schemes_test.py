"""Grid x granularity x scale rule against numpy, cell by cell, through the public API."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

_FLOATS = {'float8_e4m3': (ml_dtypes.float8_e4m3fn, 448, 8),
           'float8_e5m2': (ml_dtypes.float8_e5m2, 57344, 15),
           'float4_e2m1': (ml_dtypes.float4_e2m1fn, 6, 2)}


def cells_of(shape, granularity, group):
  """Index tuples of the cells of a matrix."""
  rows, columns = shape
  down, across = {'tensor': (rows, columns), 'channel': (rows, 1), 'group': (group, 1),
                  'block': group}[granularity]
  for i, j in itertools.product(range(0, rows, down), range(0, columns, across)):
    yield slice(i, i + down), slice(j, j + across)


def oracle(w, dtype, granularity='channel', group=None, scale=None):
  """Values of `w`, float32, one cell at a time."""
  out = np.zeros_like(w, np.float32)
  for cell in cells_of(w.shape, granularity, group):
    out[cell] = _cell(w[cell].astype(np.float32), dtype, scale)
  return out


def _cell(x, dtype, rule):
  one = np.float32(1)
  if dtype in ('binary', 'ternary'):
    mean = np.abs(x).mean(dtype=np.float32)
    sign = np.where(x >= 0, one, -one)
    return mean * (sign if dtype == 'binary' else np.clip(np.rint(x / (mean or one)), -1, 1))
  if dtype.startswith('uint'):
    levels = 2 ** int(dtype[4:]) - 1
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32(high - low) / np.float32(levels) or one
    zero = np.rint(-low / step)
    return (np.clip(np.rint(x / step) + zero, 0, levels) - zero) * step
  if dtype in _FLOATS:
    kind, limit, exponent = _FLOATS[dtype]
    peak = np.abs(x).max()
    step = np.float32(peak / limit) if rule is None else np.float32(
        2.0 ** (np.floor(np.log2(peak)) - exponent))
    return np.clip(x / (step or one), -limit, limit).astype(kind).astype(np.float32) * step
  bits = int(dtype[3:])
  low, high = (-2, 1) if bits == 2 else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
  peak = np.quantile(np.abs(x), 0.9, method='inverted_cdf') if rule else np.abs(x).max()
  step = peak * np.float32(1 / (1.5 if bits == 2 else high)) or one
  return np.clip(np.rint(np.clip(x / step, low, high)), low, high) * step


def run(transform, w):
  """Values and the packed weight; what training sees equals what is packed, jitted or not."""
  params, state = transform.init({'kernel': w})
  out = transform.apply(params, state)['kernel']
  np.testing.assert_array_equal(jax.jit(transform.apply)(params, state)['kernel'], out)
  packed = transform.pack(params, state)['kernel']
  np.testing.assert_array_equal(packed.todense(), out)
  return out, packed


class SchemesTest(parameterized.TestCase):

  @parameterized.parameters('binary', 'ternary', 'int2', 'int4', 'uint2', 'uint4', 'uint8',
                            'float8_e4m3', 'float8_e5m2', 'float4_e2m1')
  @pytest.mark.sampled(4)
  def test_like_numpy(self, dtype):
    w = np.random.default_rng(0).normal(size=(11, 6)).astype(np.float32) + 0.3
    w[4:8] = 0
    for group in (None, 4, (4, 4)):
      granularity = {None: 'channel', 4: 'group'}.get(group, 'block')
      out, packed = run(jsp.fake_quantize(dtype, group=group), jnp.asarray(w))
      expected = oracle(w, dtype, granularity, group)
      np.testing.assert_allclose(out, expected, rtol=3e-6, atol=1e-7)
      frozen = jsp.quantize(dtype, group=group)
      np.testing.assert_array_equal(frozen.apply(*frozen.init({'kernel': w}))['kernel'], out)
    bits = {'binary': 1, 'ternary': 2}.get(dtype) or int(dtype.split('_')[0][-1])
    self.assertEqual(packed.codes.data.nbytes, -(-11 * bits // 8) * 6)

  def test_three_bits_take_three_bits_and_run(self):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(1029, 1024)), jnp.float32)
    transform = jsp.fake_quantize('int3')
    params, state = transform.init({'w': w})
    seen, packed = transform.apply(params, state), transform.pack(params, state)
    np.testing.assert_array_equal(jax.jit(lambda p: p.todense())(packed['w']), seen['w'])
    self.assertEqual(jsp.nbytes(packed), -(-1029 * 3 // 8) * 1024 + 4 * 1024)
    fn, x = lambda p, x: x @ p['w'], jnp.asarray(w[:2].T[:, :1] @ jnp.ones((1, 1029)))[:3]
    np.testing.assert_allclose(jax.jit(jsp.dispatch(fn))(packed, x), fn(seen, x), rtol=2e-4,
                               atol=1e-3)

  def test_float_casts_are_those_of_ml_dtypes(self):
    # A row of 448 (57344, 6) makes the scale one.
    rng = np.random.default_rng(1)
    for dtype, (kind, limit, _) in _FLOATS.items():
      x = np.concatenate([[limit], rng.normal(size=200) * limit / 3, rng.normal(size=200),
                          rng.normal(size=100) * 1e-3, np.arange(-24, 25) / 8, [1e-9, -0.0]])
      x = np.clip(x, -limit, limit).astype(np.float32)
      out, _ = run(jsp.fake_quantize(dtype), jnp.asarray(x[:, None]))
      np.testing.assert_array_equal(out[:, 0], x.astype(kind).astype(np.float32))

  @parameterized.parameters(('mxfp8', 'float8_e4m3'), ('mxfp4', 'float4_e2m1'))
  def test_microscaling(self, name, element):
    w = np.random.default_rng(2).normal(size=(70, 3)).astype(np.float32) * 5
    w[0, 0] = 4096.0
    out, packed = run(jsp.fake_quantize(name), jnp.asarray(w))
    np.testing.assert_array_equal(out, oracle(w, element, 'group', 32, 'mx'))
    self.assertEqual(packed.scale.nbytes, 9)   # one byte for 32 elements, E8M0

  def test_mxint8_and_nvfp4(self):
    w = np.random.default_rng(3).normal(size=(48, 4)).astype(np.float32)
    out, _ = run(jsp.fake_quantize('mxint8'), jnp.asarray(w))
    for cell in cells_of(w.shape, 'group', 32):
      step = 2.0 ** (np.floor(np.log2(np.abs(w[cell]).max())) - 6)
      np.testing.assert_array_equal(out[cell], np.clip(np.rint(w[cell] / step), -127, 127) * step)
    out, packed = run(jsp.fake_quantize('nvfp4'), jnp.asarray(w))
    self.assertEqual((packed.scale.dtype, packed.factor.shape), (jnp.float8_e4m3fn, (1, 1)))
    factor = np.float32(np.abs(w).max() / 6 / 448)
    np.testing.assert_allclose(packed.factor, [[factor]], rtol=1e-6)
    for cell in cells_of(w.shape, 'group', 16):
      step = np.float32(np.abs(w[cell]).max() / 6 / factor).astype(ml_dtypes.float8_e4m3fn)
      step = step.astype(np.float32) * factor
      expected = np.clip(w[cell] / step, -6, 6).astype(ml_dtypes.float4_e2m1fn)
      np.testing.assert_allclose(out[cell], expected.astype(np.float32) * step, rtol=1e-6)

  @parameterized.parameters(('channel', None), ('group', 7), ('tensor', None))
  def test_percentile(self, granularity, group):
    w = np.random.default_rng(4).normal(size=(40, 5)).astype(np.float32)
    transform = jsp.fake_quantize('int4', granularity=granularity, group=group,
                                  scale=jsp.percentile(90))
    self.assertIn('scale=percentile(90)', jsp.spell(jsp.parse(jsp.spell(transform))))
    out, _ = run(transform, jnp.asarray(w))
    np.testing.assert_allclose(out, oracle(w, 'int4', granularity, group, 'percentile'), rtol=3e-6)

  @parameterized.parameters('int4', 'uint4', 'int3', 'float4_e2m1')
  @pytest.mark.sampled(2)
  def test_searched_rules_lose_less(self, dtype):
    w = np.random.default_rng(5).standard_t(3, size=(64, 8)).astype(np.float32)
    plain = np.asarray(run(jsp.fake_quantize(dtype), jnp.asarray(w))[0])
    mse = np.asarray(run(jsp.fake_quantize(dtype, scale='mse'), jnp.asarray(w))[0])
    hqq = np.asarray(run(jsp.fake_quantize(dtype, scale='hqq'), jnp.asarray(w))[0])
    squares = lambda out: np.square(out - w).sum(0)
    self.assertTrue((squares(mse) <= squares(plain) * (1 + 1e-5)).all())
    self.assertLess(squares(mse).sum(), 0.95 * squares(plain).sum())
    robust = lambda out: (np.abs(out - w) ** 0.7).sum()
    self.assertLess(robust(hqq), robust(plain))
    if dtype.startswith('int'):
      high = 2 ** (int(dtype[3:]) - 1) - 1
      steps = np.abs(w).max(0) / high * np.linspace(1, 0.21, 80)[:, None]   # [candidate, O]
      rounded = np.clip(np.rint(w[None] / steps[:, None]), -high, high) * steps[:, None]
      np.testing.assert_allclose(squares(mse), np.square(rounded - w).sum(1).min(0), rtol=1e-4)

  @hypothesis.settings(max_examples=12)
  @hypothesis.given(
      dtype=st.sampled_from(['int3', 'int8', 'uint4', 'uint8']), rows=st.sampled_from([1, 5, 8]),
      group=st.sampled_from([None, 3]), fill=st.sampled_from(
          ['normal', 'constant', 'zeros', 'denormal', 'huge', 'negative']),
      kind=st.sampled_from(['float32', 'bfloat16']), seed=st.integers(0, 99))
  def test_at_most_half_a_step_inside_the_range(self, dtype, rows, group, fill, kind, seed):
    x = np.random.default_rng(seed).normal(size=(rows, 4))
    x = {'normal': x, 'constant': np.full_like(x, 0.7), 'zeros': 0 * x, 'denormal': x * 1e-40,
         'huge': np.clip(x, -1, 1) * 1.5e38, 'negative': -np.abs(x)}[fill]
    w = jnp.asarray(x, kind)
    packed = jsp.quantize(dtype, group=group).init({'kernel': w})[1].weights['kernel']
    out = np.asarray(packed.todense(), np.float64)
    step = np.repeat(np.asarray(packed.scale, np.float64), group or rows, 0)[:rows]
    slack = {'float32': 1e-5, 'bfloat16': 2**-8}[kind] * np.abs(np.asarray(w, np.float64))
    self.assertTrue((np.abs(out - np.asarray(w, np.float64)) <= step * 0.50001 + slack).all())
    self.assertTrue(np.isfinite(out).all())
    self.assertTrue((out[np.asarray(w) == 0] == 0).all())

  def test_all_zero_and_sparse(self):
    for dtype in ('binary', 'uint4', 'nvfp4'):
      out, _ = run(jsp.fake_quantize(dtype), jnp.zeros((8, 4)))
      np.testing.assert_array_equal(out, jnp.zeros((8, 4)))
      w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
      transform = jsp.chain(jsp.nm(2, 4), jsp.fake_quantize(dtype))
      out, packed = run(transform, w)
      if dtype != 'binary':   # it has no zero
        self.assertGreaterEqual(int((out == 0).sum()), 16)
      self.assertEqual(type(packed.codes).__name__,
                       'PackedInts' if dtype in ('binary', 'uint4') else 'NMArray')

  @parameterized.parameters(
      (jsp.nm(2, 4), 'int8', jsp.formats.NMArray), (jsp.magnitude(0.8), 'int4', None),
      (jsp.magnitude(0.8), 'ternary', None), (jsp.magnitude(0.1), 'int8', jsp.formats.PackedInts),
      (jsp.nm(2, 4), 'uint8', jsp.formats.PackedInts),
      (jsp.rules([('k.*', jsp.nm(2, 4)), ('.*', jsp.identity())]), 'int8', jsp.formats.NMArray))
  def test_what_was_pruned_first_is_stored_sparse(self, prune, dtype, form):
    params = {'kernel': jax.random.normal(jax.random.key(0), (64, 24)), 'bias': jnp.ones(24)}
    dense = jsp.quantize(dtype)
    transform = jsp.chain(prune, dense)
    latents, state = transform.init(params)
    packed = transform.pack(latents, state)
    self.assertIsInstance(packed['kernel'].codes, form or jsp.formats.BitmaskArray)
    np.testing.assert_array_equal(packed['kernel'].todense(),
                                  transform.apply(latents, state)['kernel'])
    whole = dense.pack(*dense.init(params))['kernel'].nbytes
    self.assertEqual(packed['kernel'].nbytes < whole, form is not jsp.formats.PackedInts)

  @parameterized.parameters(np.nan, np.inf)
  def test_not_finite_is_an_error_that_names_the_weight(self, value):
    for text in ("quantize('float8_e4m3')", "quantize('uint4')", "fake_quantize('mxfp8')"):
      with self.assertRaisesRegex(ValueError, 'a/kernel: 1 of 8 values are NaN or infinite'):
        jsp.parse(text).init({'a': {'kernel': jnp.ones((2, 4)).at[0, 0].set(value)}})


if __name__ == '__main__':
  absltest.main()
