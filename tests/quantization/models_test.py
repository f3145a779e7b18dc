"""One quantized result however a model is written, compiled or called; nothing silently float."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from flax import linen
from flax import nnx

import jaxsparse as jsp

_SIZE = 16   # also of the batch: no weight may be told from its inputs by shape


def nearest(w):
  """int4, a scale an output, in numpy."""
  scale = np.abs(w).max(0) * np.float32(1 / 7)
  return (np.rint(w / scale) * scale).astype(np.float32)


def rounded(x):
  """int8 of the whole tensor, in numpy."""
  scale = np.abs(x).max() * np.float32(1 / 127)
  return np.rint(x / scale) * scale


class _Linen(linen.Module):
  @linen.compact
  def __call__(self, x):
    return self.encode(x)

  @linen.compact
  def encode(self, x):
    for name in 'ab':
      x = jnp.tanh(linen.Dense(_SIZE, use_bias=False, name=name)(x))
    return x


class _Nnx(nnx.Module):
  def __init__(self, ws):
    self.a, self.b = (nnx.Param(w) for w in ws)

  def encode(self, x):
    return jnp.tanh(jnp.tanh(x @ self.a[...]) @ self.b[...])


def forms(ws):
  """{form: (function, params)} of `tanh(tanh(x a) b)`."""
  bare, deep = dict(zip('ab', ws)), {n: {'kernel': w} for n, w in zip('ab', ws)}
  two = lambda product: lambda p, x: jnp.tanh(product(jnp.tanh(product(x, p['a'])), p['b']))
  layer = lambda x, w: (jnp.tanh(x @ w), None)
  scanned = lambda body: lambda p, x: jax.lax.scan(body, x, p['layers'])[0]
  graph, state = nnx.split(_Nnx(ws))
  picked = lambda x, w, n: jnp.tanh(jnp.einsum('br,bro->bo', x, w[jnp.full(len(x), n)]))
  return {
      'matmul operator': (two(lambda x, w: x @ w), bare),
      'dot': (two(jnp.dot), bare),
      'lax.dot': (two(jax.lax.dot), bare),
      'einsum': (two(lambda x, w: jnp.einsum('br,ro->bo', x, w)), bare),
      'vmap': (two(jax.vmap(jnp.dot, (0, None))), bare),
      'inner jit': (two(jax.jit(jnp.matmul)), bare),
      'remat': (two(jax.checkpoint(jnp.matmul)), bare),
      'transposed': (lambda p, x: two(lambda x, w: (w.T @ x.T).T)(p, x), bare),
      'scan': (scanned(layer), {'layers': jnp.stack(ws)}),
      'scan of remat': (scanned(jax.checkpoint(layer)), {'layers': jnp.stack(ws)}),
      'picked by row': (lambda p, x: picked(picked(x, p['layers'], 0), p['layers'], 1),
                        {'layers': jnp.stack(ws)}),
      'linen': (lambda p, x: _Linen().apply({'params': p}, x), deep),
      'linen method': (lambda p, x: _Linen().apply({'params': p}, x, method='encode'), deep),
      'nnx method': (lambda p, x: nnx.merge(graph, p).encode(x), state),
  }


class ModelsTest(absltest.TestCase):

  def test_every_form_gives_the_result_of_numpy(self):
    rng = np.random.default_rng(0)
    ws = [rng.normal(size=(_SIZE, _SIZE)).astype(np.float32) / 4 for _ in range(2)]
    x = rng.normal(size=(_SIZE, _SIZE)).astype(np.float32)
    wanted, float_out = x, x
    for w in ws:
      wanted, float_out = np.tanh(rounded(wanted) @ nearest(w)), np.tanh(float_out @ w)
    weights_only = x
    for w in ws:
      weights_only = np.tanh(weights_only @ nearest(w))
    self.assertGreater(np.abs(wanted - weights_only).max(), 2e-4)
    transform = jsp.quantize('int4')
    for form, (fn, params) in forms(list(map(jnp.asarray, ws))).items():
      with self.subTest(form):
        jitted = jax.jit(fn)
        np.testing.assert_allclose(jitted(params, x), float_out, atol=1e-5)   # warms the cache
        latents, state = transform.init(params)
        values, packed = transform.apply(latents, state), transform.pack(latents, state)
        both = jax.jit(jsp.quantize_activations(fn))
        np.testing.assert_allclose(jitted(values, x), weights_only, atol=1e-5)
        np.testing.assert_allclose(jax.jit(jsp.dispatch(fn))(packed, x), weights_only, atol=1e-5)
        for given in (values, packed):
          np.testing.assert_allclose(both(given, x), wanted, atol=1e-5)
        # And the other way round: the float model stays float.
        np.testing.assert_allclose(jitted(params, x), float_out, atol=1e-5)
        np.testing.assert_allclose(fn(params, x), float_out, atol=1e-5)

  def test_static_ranges(self):
    rng = np.random.default_rng(1)
    ws = [jnp.asarray(rng.normal(size=(_SIZE, _SIZE)), jnp.float32) for _ in range(2)]
    x = rng.normal(size=(_SIZE, _SIZE)).astype(np.float32)
    fn, params = forms(ws)['matmul operator']
    for dtype, levels in (('int8', 127), ('uint4', 15)):
      ranges = jsp.calibrate(fn, params, [x[:8], x[8:]], jsp.range)
      if dtype == 'int8':
        seen = rounded(x)
      else:
        scale = (x.max() - x.min()) / levels
        zero = np.rint(-x.min() / scale)
        seen = (np.clip(np.rint(x / scale) + zero, 0, levels) - zero) * scale
      run = jsp.quantize_activations(fn, dtype, ranges=ranges, weights='a')
      np.testing.assert_allclose(run(params, x), np.tanh(np.tanh(seen @ ws[0]) @ ws[1]), atol=1e-4)
      clipped = jsp.quantize_activations(lambda p, x: x @ p['a'], dtype, ranges=ranges, weights='a')
      self.assertLess(float(jnp.abs(clipped(params, 100 * jnp.eye(_SIZE))).max()),
                      float(4 * jnp.abs(ws[0]).max()) * 1.5)
    peaks = jsp.calibrate(fn, params, [x], jsp.input_max)
    plain = jsp.quantize_activations(fn, ranges=jsp.calibrate(fn, params, [x], jsp.range))
    np.testing.assert_allclose(jsp.quantize_activations(fn, ranges=peaks)(params, x),
                               plain(params, x), atol=1e-5)
    smooth = jsp.smoothquant(alpha=0.5)
    stored = smooth.apply(*smooth.init(params, stats=peaks))
    out = jsp.quantize_activations(fn, ranges=peaks)(stored, x)
    np.testing.assert_allclose(out, fn(params, x), atol=0.15)
    with self.assertRaisesRegex(ValueError, 'a: smoothquant divides its inputs'):
      jsp.quantize_activations(fn, ranges=jsp.calibrate(fn, params, [x], jsp.range))(stored, x)
    scanned, stack = forms(ws)['scan']
    shared = jsp.calibrate(scanned, stack, [x], jsp.range)
    self.assertLess(float(jnp.abs(jsp.quantize_activations(scanned, ranges=shared)(stack, x)
                                  - scanned(stack, x)).max()), 0.2)

  def test_nothing_is_silently_float(self):
    x, params = jnp.ones((2, 4)), {'a': jnp.eye(4), 'b': jnp.eye(4)}
    masked = lambda p, x: x @ (p['a'] * 2) @ p['b']
    run = lambda fn, p=params, **kwargs: jsp.quantize_activations(fn, **kwargs)(p, x)
    packed = jsp.quantize('int8')
    packed = packed.pack(*packed.init(params))
    ranges = jsp.calibrate(lambda p, x: x @ p['a'] @ p['b'], params, [x], jsp.range)
    for call, message in (
        (lambda: run(masked, weights='[ab]'), '^a: no product took the weight'),
        (lambda: run(masked, packed), '^a: no product took the weight'),
        (lambda: run(lambda p, x: x @ p['a'], packed), '^b: no product took'),
        (lambda: run(lambda p, x: x @ p['a'], ranges=ranges), '^b: no product took'),
        (lambda: run(lambda p, x: x @ p['a'] @ p['b'], ranges={'a': ranges['a']}),
         '^b: it has no range'),
        (lambda: run(lambda p, x: x @ p['a'], ranges={'a': 3.0}),
         '^a: its range must be .*jsp.range or jsp.input_max, found 3.0'),
        (lambda: run(lambda p, x: x @ p['a'], ranges={'a': jnp.eye(4)}),   # of jsp.gram
         r'^a: its range must be .*found an array \(4, 4\)'),
        (lambda: run(masked, weights='c'), "no weight matches 'c'; there are a, b"),
        (lambda: run(masked, ranges=ranges, granularity='row'), 'ranges are of whole tensors')):
      with self.assertRaisesRegex(ValueError, message):
        call()
    run(masked, weights='b')


if __name__ == '__main__':
  absltest.main()
