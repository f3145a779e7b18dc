"""Packed masks: the same training bit for bit, in an eighth of the bytes."""

import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp
from tests.laws import cases
from tests.laws import laws_test

INNER = ('magnitude(linear(0.75, end=3, every=1))', 'rigl(0.5, every=1, end=10)',
         "nm(2, 4) | fake_quantize('int8')", 'snfs(0.5, every=2, end=4)', 'static(0.5)',
         'straight_through(0.5)', 'top_kast(0.75, backward=0.5, every=1)', 'lora(2, base=nm(2, 4))',
         "rules([('.*query.*', magnitude(0.5)), ('.*', rigl(0.5, every=2, end=4))])",
         'magnitude(0.5, distribution=pooled)', 'low_rank(2)')
SHAPES = {'query/kernel': (8, 3, 5), 'layers/kernel': (2, 8, 11), 'head/kernel': (12, 8),
          'head/bias': (8,)}


def loss(p, x):
  return sum(jnp.sum((w.astype(jnp.float32) - x) ** 2) for w in jax.tree.leaves(p))


def packed_in(state):
  is_packed = lambda x: isinstance(x, jsp.PackedMask)
  return [x for x in jax.tree.leaves(state, is_leaf=is_packed) if is_packed(x)]


def train(transform, steps=5, dtype='float32'):
  params, tx = cases.make_tree(SHAPES, 'normal', dtype), optax.adam(0.1)
  ts = jsp.TrainState.create(transform, tx, params)
  step = jsp.train_step(loss, tx, transform)
  for i in range(steps):
    ts, value, _ = step(ts, jnp.float32(i))
  return ts, value


class PackedMasksTest(parameterized.TestCase):

  @parameterized.parameters(*(INNER[i] for i in (0, 5)))
  def test_trains_the_same_bit_for_bit(self, text):
    self._trains_the_same(text)

  @parameterized.parameters(*(text for i, text in enumerate(INNER) if i not in (0, 5)))
  @pytest.mark.slow
  def test_every_other_form_too(self, text):
    self._trains_the_same(text)

  def _trains_the_same(self, text):
    plain, wanted = train(jsp.parse(text), dtype='bfloat16')
    transform = jsp.parse(f'packed_masks({text})')
    ts, value = train(transform, dtype='bfloat16')
    self.assertEqual(value, wanted)
    chex.assert_trees_all_equal(ts.params, plain.params)
    chex.assert_trees_all_equal(ts.opt_state, plain.opt_state)
    chex.assert_trees_all_equal(jsp.masks(ts.state), jsp.masks(plain.state))
    self.assertEqual(jsp.sparsity(ts.state), jsp.sparsity(plain.state))
    chex.assert_trees_all_equal(jsp.densify(transform.pack(ts.params, ts.state)),
                                jsp.densify(jsp.parse(text).pack(plain.params, plain.state)))

  @parameterized.parameters(*INNER)
  def test_spells_and_takes_ceil_of_an_eighth_along_the_best_axis(self, text):
    transform = jsp.parse(f'packed_masks({text})')
    self.assertEqual(jsp.spell(transform), f'packed_masks({jsp.spell(jsp.parse(text))})')
    params = cases.make_tree(SHAPES, 'normal', 'float32')
    (_, state), (_, plain) = transform.init(params), jsp.parse(text).init(params)
    bools = [x for x in jax.tree.leaves(plain) if x.dtype == bool]
    found = packed_in(state)
    self.assertLen(found, len(bools))
    self.assertFalse(any(x.dtype == bool for x in jax.tree.leaves(state)))
    for mask, packed in zip(bools, found):
      self.assertEqual(packed.bits.dtype, jnp.uint8)
      np.testing.assert_array_equal(
          packed.bits, np.packbits(np.asarray(mask), axis=packed.axis, bitorder='little'))
      self.assertEqual(packed.bits.size, min(
          -(-n // 8) * (mask.size // n) for n in mask.shape))   # the least of all axes

  @parameterized.parameters(*(t for t in INNER if 'straight' not in t))
  def test_an_ordinary_update_returns_the_very_bits(self, text):
    transform = jsp.parse(f'packed_masks({text})')
    params, state = transform.init({'head/kernel': jnp.ones((8, 12)), 'query/kernel':
                                    jnp.ones((4, 12))})
    grads = jax.tree.map(jnp.ones_like, transform.apply(params, state))
    new = transform.update(params, state, grads=jsp.densify(grads), refresh=False)
    for before, after in zip(packed_in(state), packed_in(new)):
      self.assertIs(after, before)
    self.assertEqual(jax.tree.structure(new), jax.tree.structure(state))

  def test_the_ordinary_step_reads_bits_and_packs_none(self):
    transform, tx = jsp.packed_masks(jsp.rigl(0.5, every=5, end=10)), optax.sgd(0.1)
    ts = jsp.TrainState.create(transform, tx, {'kernel': jnp.ones((8, 128))})
    step = jsp.train_step(lambda p: (p['kernel'] ** 2).sum(), tx, transform)
    text = step.compiled.lower(False, *ts[:3]).compile().as_text()
    self.assertNotIn('conditional', text)
    self.assertNotIn('sort(', text)
    self.assertNotIn('shift-left', text)

  @parameterized.parameters(*INNER)
  @pytest.mark.sampled(4)
  def test_checkpoints_and_plans(self, text):
    transform = jsp.parse(f'packed_masks({text})')
    params = cases.make_tree(SHAPES, 'normal', 'float32')
    tree = transform.init(params)
    with tempfile.TemporaryDirectory() as directory:
      jsp.save_checkpoint(directory, 3, tree, transform)
      restored, _, _ = jsp.restore_checkpoint(directory, jax.eval_shape(lambda: tree), transform)
    chex.assert_trees_all_equal(restored, tree)
    self.assertEqual(str(jsp.plan(transform, params)), str(jsp.plan(jsp.parse(text), params)))

  def test_wrapped_in_an_optimizer(self):
    text, params = 'rigl(0.5, every=1, end=9)', {'kernel': jnp.arange(44.0).reshape(4, 11)}
    found = []
    for transform in (jsp.parse(text), jsp.packed_masks(jsp.parse(text))):
      tx = jsp.wrap(optax.adam(0.1), transform)
      p, state = params, tx.init(params)
      update = jax.jit(tx.update)
      for i in range(4):
        grads = {'kernel': jnp.sin(i + p['kernel'])}
        updates, state = update(grads, state, p)
        p = optax.apply_updates(p, updates)
      found.append((p, jsp.masks(state.transform)))
    chex.assert_trees_all_equal(*found)

  @parameterized.parameters(('rigl(0.5, every=1, end=10)', 'convolution'), ('nm(2, 4)', 'experts'),
                            ('nm(2, 4)', 'nothing to select'))
  @pytest.mark.sampled(1)
  def test_the_laws(self, text, tree):
    laws_test.check_laws(f'packed_masks({text})',
                         cases.make_tree(cases.TREES[tree], 'ties', 'bfloat16'))

  def test_under_vmap_each_member_has_its_own(self):
    transform = jsp.packed_masks(jsp.magnitude(0.5))
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 11)), 'float32')
    params, state = jax.vmap(lambda w: transform.init({'kernel': w}))(w)
    out = jax.vmap(transform.apply)(params, state)['kernel']
    for one, member in zip(w, out):
      alone = transform.apply(*transform.init({'kernel': one}))['kernel']
      np.testing.assert_array_equal(member, alone)

  @pytest.mark.slow
  def test_on_eight_devices_masks_lie_with_their_weights(self):
    params = {'a': jnp.asarray(np.random.default_rng(0).normal(size=(16, 64)), 'float32'),
              'b': jnp.asarray(np.random.default_rng(1).normal(size=(16, 12)), 'float32')}
    specs, tx = {'a': P('data', 'model'), 'b': P('data', 'model')}, optax.adam(0.1)
    losses = {}
    for text in ('rigl(0.5, every=2, end=9)', 'packed_masks(rigl(0.5, every=2, end=9))'):
      mesh = jax.make_mesh((4, 2), ('data', 'model'),
                           axis_types=(jax.sharding.AxisType.Auto,) * 2)
      transform = jsp.parse(text)
      places = jsp.train_shardings(transform, tx, params, specs, mesh)
      ts = jsp.TrainState.create(transform, tx, params, shardings=places)
      step = jsp.train_step(loss, tx, transform, shardings=places)
      for i in range(5):
        ts, value, _ = step(ts, jnp.float32(i))
      losses[text] = (value, jax.tree.map(np.asarray, jsp.masks(ts.state)))
    chex.assert_trees_all_equal(*losses.values())
    spec = lambda name: places.state.weights[name].mask.bits.spec
    self.assertEqual(spec('a'), P('data', 'model'))
    self.assertEqual(spec('b'), P(None, 'model'))   # packed along 16, no whole bytes a device
    for name in params:
      bits = ts.state.weights[name].mask.bits
      self.assertTrue(bits.sharding.is_equivalent_to(places.state.weights[name].mask.bits, 2))
    # Without a mesh nothing says how often the packed axis would be divided.
    _, state = jsp.sharding_specs(transform, params, specs)
    self.assertEqual(state.weights['a'].mask.bits, P('data', None))

  def test_one_program_that_decides(self):
    transform = jsp.packed_masks(jsp.magnitude(jsp.linear(0.5, end=4, every=2)))
    params, state = transform.init({'kernel': jnp.arange(40.0).reshape(4, 10)})
    body = lambda s, _: (transform.update(params, s), None)
    found, _ = jax.lax.scan(body, state, None, length=5)
    self.assertEqual(jsp.sparsity(found), 0.5)

  def test_only_transforms(self):
    with self.assertRaisesRegex(TypeError, "packed_masks takes a Transform, got 'nm"):
      jsp.packed_masks('nm(2, 4)')


if __name__ == '__main__':
  absltest.main()
