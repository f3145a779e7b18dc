"""Training on the blocks of a backward set is masked Top-KAST, and no product of it is dense."""

import functools
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jaxsparse as jsp

_TEXT = 'top_kast(0.75, backward=0.5, penalty=0.02, every=3, pattern=balanced_blocks(4, 4))'
_PACKED = f'packed_blocks({_TEXT})'


def normal(rng, *shape, dtype='float32'):
  return jnp.asarray(rng.normal(size=shape), dtype)


def loss_fn(params, x, y):
  h = jnp.maximum(x @ params['kernel'] + params['bias'][None], 0)
  h = jnp.einsum('bmk,bkn->bmn', jnp.stack([h, h[::-1]]), params['stack'])
  return jnp.mean((h.sum(0) - y) ** 2)


def problem():
  rng = np.random.default_rng(0)
  params = {'kernel': normal(rng, 16, 32), 'bias': normal(rng, 32),
            'stack': 0.3 * normal(rng, 2, 32, 16)}
  return params, normal(rng, 10, 16), normal(rng, 10, 16)


def placed(w, panels, blocks):
  """`panels` written into a copy of the matrices `w`, block by block."""
  w, panels, kidx = np.array(w, np.float32), np.asarray(panels, np.float32), np.asarray(blocks.kidx)
  bk, bn = blocks.block
  for index in np.ndindex(*kidx.shape):
    *batch, g, s = index
    row = kidx[index] * bk
    there = w[(*batch, slice(row, row + bk), slice(g * bn, (g + 1) * bn))]
    part = panels[(*batch, g, slice(s * bk, (s + 1) * bk))]
    there[...] = part[:there.shape[0], :there.shape[1]]
  return w


def filled(params, state):
  """Dense latents of weights held as blocks."""
  held = {k: v.backward for k, v in state.weights.items()}
  return params | {k: placed(v.latents, params[k], v.blocks) for k, v in held.items()}


def sets(state):
  """{key: (A, B)} as bools."""
  def opened(x):
    if not isinstance(x, jsp.BlockMask):
      return np.asarray(x)
    (bk, bn), (*_, slots) = x.block, x.kidx.shape
    return placed(np.zeros(x.shape), np.ones((*x.kidx.shape[:-1], slots * bk, bn)), x) > 0

  return {k: (opened(v.mask), opened(getattr(v.backward, 'blocks', v.backward)))
          for k, v in state.weights.items()}


@functools.cache
def started():
  """Latents and states, compiled once for all tests, on the host, as steps donate theirs."""
  both = jax.jit(lambda p: {text: jsp.parse(text).init(p) for text in (_TEXT, _PACKED)})
  return jax.tree.map(np.asarray, both(problem()[0]))


def trained(text, tx, steps, **how):
  transform, (_, x, y) = jsp.parse(text), problem()
  params, state = jax.tree.map(jnp.asarray, started()[text])
  ts, found = jsp.TrainState(params, state, tx.init(params), 0), []
  step = jsp.train_step(jsp.dispatch(loss_fn), tx, transform, **how)
  for _ in range(steps):
    ts, loss, _ = step(ts, x, y)
    found.append((float(loss), sets(ts.state), jax.tree.map(np.asarray, (ts.params, ts.state))))
  return transform, ts, step, found


class PackedBackwardSetTest(absltest.TestCase):

  def test_trains_as_masks_do(self):
    tx = optax.sgd(0.05)
    *_, dense = trained(_TEXT, tx, 12)
    transform, ts, step, packed = trained(_PACKED, tx, 12, dense=False)
    self.assertEqual(jsp.spell(transform), _PACKED)
    for (expected, chosen, (params, _)), (loss, held, end) in zip(dense, packed, strict=True):
      np.testing.assert_allclose(loss, expected, rtol=1e-4)
      chex.assert_trees_all_equal(held, chosen)
      chex.assert_trees_all_close(filled(*end), params, rtol=1e-4, atol=1e-5)
    self.assertGreater(len({chosen['stack'][1].tobytes() for _, chosen, _ in dense}), 2)
    self.assertLessEqual(step.compiled._cache_size(), 2)
    self.assertEqual(ts.params['stack'].shape, (2, 4, 4 * 4, 4))   # half of each, to the optimizer
    stored = transform.pack(ts.params, ts.state)['stack']
    self.assertIsInstance(stored, jsp.formats.BlockArray)
    self.assertTrue(stored.doubly_balanced)
    np.testing.assert_array_equal(
        stored.todense(), np.where(held['stack'][0], filled(ts.params, ts.state)['stack'], 0))

    # What waits is neither written nor copied between set updates, and survives a checkpoint.
    pointer = lambda ts: ts.state.weights['stack'].backward.latents.unsafe_buffer_pointer()
    _, x, y = problem()
    ts, _, _ = step(ts, x, y)   # step 12 chose sets
    with tempfile.TemporaryDirectory() as directory:
      jsp.save_checkpoint(directory, 13, ts, transform)
      restored, *_ = jsp.restore_checkpoint(directory, ts, transform)
    before = pointer(ts)
    ts, loss, _ = step(ts, x, y)
    self.assertEqual(pointer(ts), before)
    _, again, _ = step(restored, x, y)
    self.assertEqual(loss, again)

  def test_gradients_are_those_of_the_dense_view(self):
    params, x, y = problem()
    slopes = {key: np.sin(np.arange(w.size)).reshape(w.shape) for key, w in params.items()}
    linear = lambda p, *_: sum((p[key] * slopes[key]).sum() for key in p)
    for loss_of, dense in ((jsp.dispatch(loss_fn), False), (linear, True)):
      grads_of = lambda text, dense, loss_of=loss_of: jax.jit(jsp.value_and_grad(
          loss_of, jsp.parse(text), dense=dense))(*started()[text], x, y)
      expected_loss, expected, _ = grads_of(_TEXT, True)
      loss, grads, _ = grads_of(_PACKED, dense)
      np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
      for key, value in started()[_PACKED][1].weights.items():
        found = placed(np.zeros(params[key].shape), grads[key], value.backward.blocks)
        scale = np.abs(np.asarray(expected[key])).max()
        np.testing.assert_allclose(found, expected[key], atol=1e-5 * scale, err_msg=key)

  def test_values_wait_and_moments_do_not(self):
    tx, transform, (params, old) = optax.adam(0.1), jsp.parse(_PACKED), started()[_PACKED]
    rates = np.random.default_rng(1).uniform(0.1, 2, (2, 4, 16, 1))
    params = params | {'stack': params['stack'] * rates.astype('float32')}
    opt_state = jax.tree.map(lambda x: jnp.full_like(x, 7), tx.init(params))
    new = jax.jit(lambda p, s: transform.update(p, s, refresh=True))(params, old)
    moved, moments = jax.jit(lambda *args: jsp.realign(tx, *args))(params, opt_state, old, new)
    (a, b), (next_a, next_b) = sets(old)['stack'], sets(new)['stack']
    self.assertTrue((next_b & ~b).any() and (next_a & ~a).any())
    np.testing.assert_array_equal(filled(moved, new)['stack'], filled(params, old)['stack'])
    np.testing.assert_array_equal(moved['stack'], new.weights['stack'].backward.panels())
    blocks = new.weights['stack'].backward.blocks
    there = placed(np.zeros((2, 32, 16)), moments[0].mu['stack'], blocks)
    np.testing.assert_array_equal(there, np.where(b & next_b, 7, 0))
    self.assertEqual(moments[0].mu['bias'].tolist(), [7] * 32)

  def test_ragged_edges_and_what_does_not_pack(self):
    rng = np.random.default_rng(1)
    params = {'ragged': normal(rng, 2, 10, 7, dtype=jnp.bfloat16), 'bias': jnp.ones(3),
              'tiny': jnp.ones((2, 2))}
    inner = jsp.parse('top_kast(0.6, backward=0.2, pattern=balanced_blocks(4, 2, pad=True))')
    transform = jsp.packed_blocks(inner)
    both = jax.jit(lambda p: (transform.init(p), inner.init(p)))
    (latents, state), (masked, masked_state) = both(params)
    self.assertEqual(latents['tiny'].shape, (2, 2))
    self.assertEqual(latents['ragged'].dtype, jnp.bfloat16)
    seen = jax.jit(lambda *args: jsp.densify(transform.apply(*args)))(latents, state)
    chex.assert_trees_all_equal(seen, jax.jit(inner.apply)(masked, masked_state))
    chosen = sets(masked_state)
    chex.assert_trees_all_equal(sets(state), chosen)
    held = placed(np.zeros((2, 10, 7)), latents['ragged'], state.weights['ragged'].backward.blocks)
    np.testing.assert_array_equal(held, np.where(chosen['ragged'][1], masked['ragged'], 0))

  def test_a_step_costs_what_its_sets_hold(self):
    # XLA counts the body of a loop once, and a panel is one: blocks as wide as the weight have one.
    rng, tx, layers, width = np.random.default_rng(0), optax.sgd(1e-3), 3, 256
    params = {f'layer_{i}': normal(rng, width, width) for i in range(layers)}

    def loss(params, x):
      for w in params.values():
        x = jnp.maximum(x @ w, 0)
      return jnp.mean(x * x)

    def flops(transform, dense):
      ts = jax.eval_shape(transform.init, params)
      ts = (*ts, jax.eval_shape(tx.init, ts[0]))
      step = jsp.train_step(jsp.dispatch(loss), tx, transform, dense=dense)
      x = jax.ShapeDtypeStruct((width, width), 'float32')
      return step.compiled.lower(False, *ts, x).compile().cost_analysis()['flops']

    dense = flops(jsp.identity(), True)
    for a, b in ((1 / 4, 1 / 2), (1 / 8, 1 / 4)):
      kast = jsp.top_kast(1 - a, backward=1 - b, pattern=jsp.balanced_blocks(32, 256))
      ratio = flops(jsp.packed_blocks(kast), False) / dense
      # The first layer has no input gradient.
      products = (layers * a + (layers - 1) * a + layers * b) / (3 * layers - 1)
      self.assertBetween(ratio, 0.97 * products, 1.06 * products)


if __name__ == '__main__':
  absltest.main()
