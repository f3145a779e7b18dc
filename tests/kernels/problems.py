"""Products with panels to be checked, and the float64 oracle that checks them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as jsp


def draw(seed, rows, features, panels, slots, bk, bn, *, dtype='float32', even=False):
  """`(x, data, kidx, dy)`, the last slot of the last panel empty where there are two."""
  rng = np.random.default_rng(seed)
  blocks = -(-features // bk)
  if even:   # shifted diagonals between two permutations
    kidx = np.zeros((panels, slots), np.int32)
    kidx[rng.permutation(panels)] = rng.permutation(blocks)[
        (np.arange(panels)[:, None] + np.arange(slots)) % blocks]
  else:
    kidx = np.stack([rng.permutation(blocks)[:slots] for _ in range(panels)]).astype(np.int32)
  data = rng.normal(size=(panels, slots * bk, bn))
  if slots > 1 and not even:
    data[-1, -bk:], kidx[-1, -1] = 0, 0
  x, dy = rng.normal(size=(rows, features)), rng.normal(size=(rows, panels * bn))
  return (*(jnp.asarray(a, dtype) for a in (x, data)), jnp.asarray(kidx), jnp.asarray(dy, dtype))


def oracle(x, data, kidx, dy):
  """`(y, dx, ddata)` block by block, in float64."""
  x, data, dy = (np.asarray(a, np.float64) for a in (x, data, dy))
  kidx = np.asarray(kidx)
  bk, bn = data.shape[1] // max(kidx.shape[1], 1), data.shape[2]
  wide = np.pad(x, ((0, 0), (0, -x.shape[1] % max(bk, 1))))
  y, dx, ddata = np.zeros((len(x), data.shape[0] * bn)), np.zeros_like(wide), np.zeros_like(data)
  for g, row in enumerate(kidx):
    for s, k in enumerate(row):
      there, here = slice(k * bk, (k + 1) * bk), slice(g * bn, (g + 1) * bn)
      block = slice(s * bk, (s + 1) * bk)
      y[:, here] += wide[:, there] @ data[g, block]
      dx[:, there] += dy[:, here] @ data[g, block].T
      ddata[g, block] = wide[:, there].T @ dy[:, here]
  return y, dx[:, :x.shape[1]], ddata


@functools.partial(jax.jit, static_argnames=('backend', 'doubly_balanced'))
def all_three(x, data, kidx, dy, backend='xla', doubly_balanced=False):
  """`(y, dx, ddata)` of the kernel."""
  run = lambda x, data: jsp.block_sparse_matmul(
      x, data, kidx, backend=backend, doubly_balanced=doubly_balanced,
      interpret=backend != 'xla')
  y, pull = jax.vjp(run, x, data)
  return (y, *pull(dy))


def assert_agrees(arguments, tolerance=1e-5, **how):
  """Fails where a product or a gradient is off, relative to its largest entry."""
  found, expected = all_three(*arguments, **how), oracle(*arguments)
  for f, e in zip(found, expected):
    scale = max(np.abs(e).max(initial=0), 1)
    np.testing.assert_allclose(np.asarray(f, np.float64) / scale, e / scale, atol=tolerance)
