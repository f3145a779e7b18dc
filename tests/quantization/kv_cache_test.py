"""Quantized caches: decoding token by token against storing the whole, and against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

_TOKENS, _HEADS, _WIDTH = 6, 2, 12


def vectors(seed):
  return jax.random.normal(jax.random.key(seed), (3, _TOKENS, _HEADS, _WIDTH))


def attend(query, keys, values, count):
  """One query `[batch, heads, width]` over the first `count` tokens."""
  logits = jnp.einsum('bhw,bthw->bht', query, keys) / np.sqrt(_WIDTH)
  logits = jnp.where(jnp.arange(_TOKENS)[None, None] < count, logits, -jnp.inf)
  return jnp.einsum('bht,bthw->bhw', jax.nn.softmax(logits), values)


class CacheTest(parameterized.TestCase):

  @parameterized.parameters(('int8', None), ('int4', 5), ('uint4', 4), ('mxfp4', None))
  def test_scan_of_appends_is_the_whole(self, dtype, group):
    keys, values = vectors(0), vectors(1)
    stored = [jsp.quantize_cache(x, dtype, group=group) for x in (keys, values)]
    empty = [jsp.quantize_cache(jnp.zeros_like(x), dtype, group=group) for x in (keys, values)]

    @jax.jit
    def decode(caches):
      def step(caches, inputs):
        n, k, v = inputs
        caches = [jsp.append_to_cache(c, x[:, None], n) for c, x in zip(caches, (k, v))]
        return caches, attend(k, *map(jsp.read_cache, caches), n + 1)
      over = lambda x: jnp.moveaxis(x, 1, 0)
      return jax.lax.scan(step, caches, (jnp.arange(_TOKENS), over(keys), over(values)))

    caches, out = decode(empty)
    jax.tree.map(np.testing.assert_array_equal, caches, stored)
    for n in range(_TOKENS):
      wanted = attend(keys[:, n], *map(jsp.read_cache, stored), n + 1)
      np.testing.assert_allclose(out[n], wanted, atol=1e-5)
    off = jnp.abs(out[-1] - attend(keys[:, -1], keys, values, _TOKENS)).max()
    self.assertLess(float(off), {'int8': 0.03}.get(dtype, 0.6))

  def test_numpy(self):
    x = np.asarray(vectors(2))
    scale = np.abs(x).max(-1, keepdims=True) * np.float32(1 / 7)
    cache = jsp.quantize_cache(x, 'int4')
    np.testing.assert_allclose(jsp.read_cache(cache), np.rint(x / scale) * scale, rtol=1e-6)
    self.assertEqual(cache.shape, x.shape)
    self.assertEqual(cache.nbytes, x.size // 2 + scale.size * 4)
    low = jsp.quantize_cache(jnp.asarray(x, jnp.bfloat16), 'int8')
    self.assertEqual(jsp.read_cache(low).dtype, jnp.bfloat16)

  def test_bad(self):
    cache = jsp.quantize_cache(jnp.zeros((4, 2, 8)))
    np.testing.assert_array_equal(jsp.read_cache(cache), 0)
    for call, message in (
        (lambda: jsp.quantize_cache(jnp.zeros((2, 8))), 'a cache is'),
        (lambda: jsp.quantize_cache(jnp.zeros((4, 2, 8)), 'int4', group=(2, 2)), 'got shape'),
        (lambda: jsp.append_to_cache(cache, jnp.zeros((1, 3, 8)), 0), 'do not fit a cache'),
        (lambda: jsp.append_to_cache(cache, jnp.zeros((5, 2, 8)), 0), 'do not fit a cache')):
      with self.assertRaisesRegex(ValueError, message):
        call()


if __name__ == '__main__':
  absltest.main()
