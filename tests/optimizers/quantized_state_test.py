"""Optimizer states in few bits: codes against numpy, and inside everything optax offers."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

import jaxsparse as jsp
from jaxsparse.numerics import companding


def coded(x, bits):
  """One block after its round trip, in float64."""
  peak = np.abs(x).max()
  levels = 2**bits - 1 if (x >= 0).all() else 2 ** (bits - 1) - 1
  code = np.rint(np.sqrt(np.abs(x) / (peak or 1)) * levels)
  code = np.maximum(code, x != 0)
  return np.sign(x) * (code / levels) ** 2 * peak


def holder():
  """A transformation whose state is the last gradient."""
  init = lambda params: jax.tree.map(jnp.zeros_like, params)
  return optax.GradientTransformation(init, lambda g, state, params=None: (state, g))


def through(x, bits, block):
  """What is left of `x` after it was stored."""
  tx = jsp.quantized_state(holder(), bits=bits, block=block)
  params = {'w': jnp.zeros_like(x)}
  _, state = tx.update({'w': x}, tx.init(params), params)
  return np.asarray(tx.update(params, state, params)[0]['w'])


def params(seed=0):
  shapes = {'a': {'kernel': (64, 130), 'bias': (130,)}, 'conv': {'kernel': (3, 3, 16, 8)},
            'small': (5,), 'odd': (7, 33)}
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes,
                      is_leaf=lambda s: isinstance(s, tuple))


def nbytes(tree):
  return sum(x.nbytes for x in jax.tree.leaves(tree))


class CodesTest(parameterized.TestCase):

  @parameterized.product(bits=(8, 4), fill=('normal', 'squares', 'mixed'))
  def test_like_numpy_in_blocks_of_rows(self, bits, fill):
    x = np.random.default_rng(0).normal(size=(9, 64)).astype(np.float32)
    x[1, ::2] = 0
    x[3] = 0
    x[5] *= 1e-12
    x[7] *= 1e-32
    x[6, :5] *= 1e-9
    x = {'normal': x, 'squares': x * x, 'mixed': np.where(x > 1, -x, np.abs(x))}[fill]
    found = through(jnp.asarray(x), bits, 32)
    blocks = x.reshape(9, 2, 32).astype(np.float64)
    expected = np.stack([[coded(b, bits) for b in row] for row in blocks]).reshape(9, 64)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-36)
    np.testing.assert_array_equal(found == 0, x == 0)   # nothing becomes zero, zero stays

  @parameterized.parameters((8, (33, 7)), (4, (33, 7)), (4, (3, 3, 5, 11)), (4, (257,)))
  def test_shapes_that_no_block_divides(self, bits, shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    found = through(jnp.asarray(x), bits, 32)
    worst = np.abs(x).max() * (1 / 127 if bits == 8 else 1 / 7)
    self.assertLess(np.abs(found - x).max(), worst)

  @parameterized.product(bits=(8, 4), value=(np.nan, -np.nan, np.inf),
                         shape=((2, 64), (256, 6), (3, 3, 32, 32)))
  def test_what_is_not_finite_stays_so(self, bits, value, shape):
    place = (1,) * len(shape)
    found = through(jnp.ones(shape).at[place].set(value), bits, 128)
    block = tuple(slice(i // n * n, i // n * n + n)
                  for i, n in zip(place, companding.geometry(shape, 128)))
    inside = np.zeros(shape, bool)
    inside[block] = True
    np.testing.assert_array_equal(np.isfinite(found), ~inside)
    np.testing.assert_allclose(found[~inside], 1, rtol=1e-6)

  def test_moments_of_one_weight_are_coded_as_each_alone(self):
    """Ranges are found together; weights of one shape, nested or bare, are not mixed up."""
    one = jnp.arange(-64.0, 64.0).reshape(2, 64)
    for p in ({'a': {'w': one}, 'b': {'w': 3 * one}}, {'w': {'w': one}}, one):
      adam, held = optax.adam(0.1), jsp.quantized_state(optax.adam(0.1), block=32)
      _, whole = adam.update(p, adam.init(p), p)
      _, stored = jax.jit(held.update)(p, held.init(p), p)
      for name in ('mu', 'nu'):
        for x, codes, scale in zip(*(jax.tree.leaves(getattr(tree[0], name)) for tree in
                                     (whole, stored.codes, stored.scales))):
          expected = companding.encode(x, bits=8, block=32)
          np.testing.assert_array_equal(codes, expected[0])
          np.testing.assert_allclose(scale, expected[1], rtol=1e-6)


class QuantizedStateTest(parameterized.TestCase):

  @parameterized.parameters((8, 0.27), (4, 0.15))
  def test_bytes(self, bits, limit):
    p = {'w1': jnp.zeros((64, 256)), 'b1': jnp.zeros(256), 'w2': jnp.zeros((256, 256)),
         'b2': jnp.zeros(256), 'w3': jnp.zeros((256, 10)), 'b3': jnp.zeros(10)}
    full = nbytes(optax.adam(0.1).init(p))
    self.assertLess(nbytes(jsp.quantized_state(optax.adam(0.1), bits=bits).init(p)), limit * full)

  @parameterized.product(bits=(8, 4), columns=(512, 500))
  def test_an_update_holds_no_whole_moment(self, bits, columns):
    p = {'w': jax.ShapeDtypeStruct((256, columns), jnp.float32)}
    tx = jsp.quantized_state(optax.adam(1e-3), bits=bits)
    step = jax.jit(tx.update, donate_argnums=1).lower(p, jax.eval_shape(tx.init, p), p)
    # Codes are copied, and each block has some constants.
    self.assertLess(step.compile().memory_analysis().temp_size_in_bytes, 3 * 256 * columns)

  @parameterized.named_parameters(
      ('adam', lambda q: q(optax.adam(1e-2))),
      ('chain', lambda q: optax.chain(optax.clip_by_global_norm(1.0), q(optax.scale_by_adam()),
                                      optax.scale(-1e-2))),
      ('masked', lambda q: optax.masked(q(optax.adam(1e-2)), lambda p: jax.tree.map(
          lambda x: x.ndim > 1, p))),
      ('partition', lambda q: optax.partition({'m': q(optax.adam(1e-2)), 's': optax.sgd(1e-2)},
                                              lambda p: jax.tree.map(
          lambda x: 'm' if x.ndim > 1 else 's', p))),
      ('multi_steps', lambda q: optax.MultiSteps(q(optax.adam(1e-2)), 2).gradient_transformation()),
      ('outside', lambda q: q(optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation())),
      ('hyperparams', lambda q: optax.inject_hyperparams(lambda learning_rate: q(optax.adam(
          learning_rate)))(learning_rate=1e-2)),
      ('inside', lambda q: q(optax.inject_hyperparams(optax.adam)(learning_rate=1e-2))),
      ('adafactor', lambda q: q(optax.adafactor(1e-2))), ('lion', lambda q: q(optax.lion(1e-2))),
      ('amsgrad', lambda q: q(optax.amsgrad(1e-2))), ('rmsprop', lambda q: q(optax.rmsprop(1e-2))))
  @pytest.mark.sampled(4)
  def test_inside_and_around(self, make):
    p = params()
    tx, plain = make(jsp.quantized_state), make(lambda tx: tx)
    state, exact = tx.init(p), plain.init(p)
    step, rival = jax.jit(tx.update), jax.jit(plain.update)
    fast = lambda s: jax.tree.map(lambda x: x, s)
    for seed in range(4):
      grads = jax.tree.map(lambda x: x * 0.1, params(seed % 2 + 1))
      updates, state = step(grads, fast(state), p)
      expected, exact = rival(grads, exact, p)
      for u, e in zip(jax.tree.leaves(updates), jax.tree.leaves(expected)):
        self.assertLess(float(jnp.abs(u - e).mean()), 0.1 * float(jnp.abs(e).mean()) + 1e-9)
    self.assertEqual(step._cache_size(), 1)
    # Every copy of the params in the state is found, whatever it is stored as.
    seen = optax.tree_map_params(
        tx, lambda x, _: x if isinstance(x, optax.MaskedNode) else jnp.zeros_like(x), state, p,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    self.assertEqual(jax.tree.structure(seen), jax.tree.structure(state))
    if len(jax.tree.leaves(exact)) > 10:
      self.assertLess(nbytes(state), nbytes(exact))

  def test_checkpoints_and_gradients_alone(self):
    p = params()
    tx = jsp.quantized_state(optax.adam(1e-2), bits=4)
    _, state = tx.update(p, tx.init(p))   # no params: their shapes are the gradients'
    with tempfile.TemporaryDirectory() as directory:
      jsp.save_checkpoint(directory, 1, state, jsp.identity())
      like = jax.eval_shape(lambda: state)
      restored, _, _ = jsp.restore_checkpoint(directory, like, jsp.identity())
    jax.tree.map(np.testing.assert_array_equal, restored, state)

  def test_sharded(self):
    mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    p = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(64, 512)), jnp.float32)}
    specs = {'w': PartitionSpec('model', 'data')}
    place = lambda tree: jax.tree.map(lambda s: NamedSharding(mesh, s), tree,
                                      is_leaf=lambda x: isinstance(x, PartitionSpec))
    for bits in (8, 4):
      tx = jsp.quantized_state(optax.adam(1e-2), bits=bits)
      derived = jsp.optimizer_specs(tx, p, specs)
      self.assertEqual(derived.codes[0].mu['w'],
                       specs['w'] if bits == 8 else PartitionSpec(None, 'data'))
      self.assertEqual(derived.scales[0].nu['w'], PartitionSpec('model', None))
      run = lambda p: tx.update(p, tx.init(p), p)
      expected = jax.jit(run)(p)
      found = jax.jit(run, out_shardings=(place(specs), place(derived)))(
          jax.device_put(p, place(specs)))
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)

  def test_only_some(self):
    p = params()
    tx = jsp.quantized_state(optax.adam(1e-2), only='0/nu/.*')
    state = tx.init(p)
    self.assertEqual(state.codes[0].mu['a']['kernel'].dtype, jnp.float32)
    self.assertEqual(state.codes[0].nu['a']['kernel'].dtype, jnp.uint8)
    with self.assertRaisesRegex(ValueError, "'mu/.*' matches no leaf .*; it has 0/count, 0/mu/a"):
      jsp.quantized_state(optax.adam(1e-2), only='mu/.*').init(p)
    for kwargs, message in (({'bits': 7}, 'bits must be 8 or 4, got 7'),
                            ({'block': 0}, 'positive number of values, got 0')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.quantized_state(optax.adam(1e-2), **kwargs)

  def test_a_dead_input_under_momentum(self):
    # A second moment far below its block's largest: as a zero it would make the update infinite.
    p = {'w': jnp.ones((2, 256))}
    for bits in (8, 4):
      tx = jsp.quantized_state(optax.adam(1e-3), bits=bits)
      state = tx.init(p)
      for step in range(50):
        grads = {'w': jnp.where(jnp.arange(512).reshape(2, 256) % 7 == 0, 1e-6, 1.0) / (step + 1)}
        updates, state = tx.update(grads, state, p)
        self.assertLess(float(jnp.abs(updates['w']).max()), 1e-2)


if __name__ == '__main__':
  absltest.main()
