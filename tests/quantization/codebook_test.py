"""Frozen codebooks against k-means in a loop of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import jaxsparse as jsp


def lloyd(x, k):
  centroids = np.linspace(x.min(), x.max(), k)
  for _ in range(25):
    near = np.abs(x[:, None] - centroids).argmin(1)
    centroids = np.sort([x[near == i].mean() if (near == i).any() else c
                         for i, c in enumerate(centroids)])
  return centroids[np.abs(x[:, None] - centroids).argmin(1)]


class CodebookTest(absltest.TestCase):

  def test_values_bits_and_zeros(self):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 24)), jnp.float32)
    transform = jsp.codebook(bits=3)
    params, state = transform.init({'kernel': w})
    out, packed = transform.apply(params, state)['kernel'], transform.pack(params, state)['kernel']
    for matrix, found in zip(np.asarray(w, np.float64), np.asarray(out)):
      np.testing.assert_allclose(found.ravel(), lloyd(matrix.ravel(), 8), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(packed.todense(), out)
    self.assertEqual(packed.nbytes, 2 * (40 * 3 // 8 * 24 + 8 * 4))
    both = jsp.chain(jsp.magnitude(0.5), transform)
    zeros = both.apply(*both.init({'kernel': w}))['kernel'] == 0
    self.assertEqual(int(zeros.sum()), w.size // 2)
    # A mask does not shape what is packed, so that it may be traced.
    pack = jax.jit(both.pack)(*both.init({'kernel': w}))['kernel']
    np.testing.assert_array_equal(pack.todense() == 0, zeros)
    large = transform.apply(*transform.init({'kernel': w * 2.0**125}))['kernel']
    np.testing.assert_array_equal(large, out * 2.0**125)
    for bad in (0, 9, True, 2.5):
      with self.assertRaisesRegex(ValueError, 'bits must be an integer from 1 to 8'):
        jsp.codebook(bad)


if __name__ == '__main__':
  absltest.main()
