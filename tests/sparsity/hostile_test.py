"""What no one hopes for: NaN, ties, nothing at all, the edges of dtypes, shapes and sparsities."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.core import schedules
from jaxsparse.numerics import axes
from jaxsparse.sparsity import TRANSFORMS
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import regrowth
from tests.laws import cases
from tests.sparsity import oracles

# Each word once; the laws go through its further forms.
WORDS = [cases.guess(factory) for factory in TRANSFORMS]
WORDS += ['magnitude(0.5, distribution=pooled)', 'magnitude(0.5, pattern=block(2, 1))']
RISES = 'magnitude(linear(0.75, start=1, end=2, every=1))'
# Whose masks move at count 1, by values that a compiled step cannot refuse.
MOVES = [RISES, 'magnitude(linear(0.25, initial=0.75, start=1, end=2, every=1))',
         'magnitude(linear(0.75, start=1, end=2, every=1), distribution=pooled)',
         'magnitude(linear(0.75, start=1, end=2, every=1), pattern=block(2, 2))',
         'magnitude(linear(0.75, start=1, end=2, every=1), pattern=channel())',
         "prune('saliency', schedule=linear(0.75, start=1, end=2, every=1))",
         'rigl(0.5, every=1, end=10)', 'snfs(0.5, every=1, end=10)',
         'sparse_evolution(0.5, every=1, end=10)', 'straight_through(0.5)', 'sr_ste(2, 4)',
         'top_kast(0.75, backward=0.5, every=1)', 'ac_dc(0.5, start=1, every=1, end=3)',
         'movement(linear(0.75, start=1, end=2, every=1))']


def kernels(**values):
  return {name: {'kernel': jnp.asarray(w)} for name, w in values.items()}


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def hostile():
  """Every weight that should work, and what is none beside it."""
  w = np.clip(normal(8, 4), -2, 2) / 2
  return kernels(
      half=jnp.asarray(w * 6e4, jnp.float16), brain=jnp.asarray(w * 3e37, jnp.bfloat16),
      huge=w * 1e37, tiny=w * 1e-30, zeros=np.zeros((8, 4), np.float32),
      negative=-np.zeros((8, 4), np.float32), ones=jnp.ones((8, 4), jnp.bfloat16),
      stacked=normal(3, 8, 4), row=normal(4, 1), rowless=np.zeros((0, 4), np.float32),
      columnless=np.zeros((4, 0), np.float32)) | {
          'bias': jnp.ones(4), 'scalar': jnp.ones(()), 'steps': jnp.zeros((), jnp.int32)}


def run(text, params):
  """`(effective weights, masks)` after init, an ordinary update, and one that is due."""
  transform = jsp.parse(text)
  ones = jax.tree.map(jnp.ones_like, params)
  params, state = transform.init(params, stats=cases.statistics(params), grads=ones)
  for refresh in (False, True):
    state = transform.update(params, state, grads=ones, refresh=refresh)
  jax.block_until_ready(transform.pack(params, state))
  return transform.apply(params, state), jsp.masks(state)


class EveryTransformTest(parameterized.TestCase):

  @parameterized.parameters(*WORDS)
  @pytest.mark.sampled(6)
  def test_hostile_weights(self, text):
    params = hostile()
    if 'block' in text:   # which says so of a single column or row that it does not divide
      params = {k: v for k, v in params.items() if k != 'row'}
    effective, masks = run(text, params)
    for (path, old), new in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(effective)):
      name = jax.tree_util.keystr(path)
      self.assertEqual((new.shape, new.dtype), (old.shape, old.dtype), name)
      self.assertTrue(bool(jnp.isfinite(new.astype(jnp.float32)).all()), name)
    for name in ('bias', 'scalar', 'steps', 'rowless', 'columnless'):
      self.assertIs(jax.tree.leaves(effective[name])[0], jax.tree.leaves(params[name])[0])
    self.assertNoCommonElements(masks, ['rowless/kernel', 'columnless/kernel'])
    for name, mask in masks.items():
      self.assertTrue(bool(mask.any()) or 'pooled' in text, name)

  @parameterized.parameters(*WORDS)
  def test_nothing_to_do(self, text):
    for params in ({}, {'scalar': jnp.ones(()), 'none': jnp.ones((0, 3))}):
      effective, masks = run(text, params)
      self.assertIs(effective.get('scalar'), params.get('scalar'))
      self.assertEqual((jax.tree.structure(effective), masks), (jax.tree.structure(params), {}))
    with self.assertRaisesRegex(ValueError, "'kernal' matches no weight.*ok/kernel"):
      jsp.at('kernal', jsp.parse(text)).init(kernels(ok=normal(8, 4)))

  @parameterized.parameters(*WORDS)
  def test_what_is_not_finite_is_named(self, text):
    transform, fine = jsp.parse(text), kernels(bad=normal(8, 4), ok=normal(8, 4))
    statistics = cases.statistics(fine)
    latents, state = transform.init(fine, stats=statistics, grads=fine)
    for value in (np.nan, np.inf, -np.inf):
      bad = fine | kernels(bad=jnp.asarray(normal(8, 4)).at[1, 2].set(value))
      with self.assertRaisesRegex(ValueError, 'bad/kernel: 1 of 32 values are NaN or infinite'):
        transform.init(bad, stats=statistics, grads=fine)
      message = 'bad/kernel: 1 of 32 gradients are NaN or infinite; expected finite gradients'
      with self.assertRaisesRegex(ValueError, message):
        transform.init(fine, stats=statistics, grads=bad)
    # Masks that calibration chose do not follow gradients.
    if jsp.masks(state) and not text.startswith(('optimal_brain', 'sparsegpt', 'wanda')):
      with self.assertRaisesRegex(ValueError, message):
        transform.update(latents, state, grads=bad)


class CompiledTest(parameterized.TestCase):

  @parameterized.parameters(*MOVES)
  @pytest.mark.sampled(5)
  def test_counts_survive_nan(self, text):
    transform = jsp.parse(text)
    params, state = transform.init(kernels(w=normal(8, 4)))
    step = jax.jit(lambda p, s, g: transform.update(p, s, grads=g, refresh=True))
    state = step(params, state, params)
    expected = int(jsp.masks(step(params, state, params))['w/kernel'].sum())
    for value in (np.nan, np.inf, -np.inf):
      some = jnp.asarray(normal(8, 4)).at[:3, 1:].set(value)
      for broken in (some, jnp.full((8, 4), value)):
        for p, g in ((params, kernels(w=broken)), (kernels(w=broken), params)):
          new = step(p, state, g)
          mask = jsp.masks(new)['w/kernel']
          self.assertEqual(int(mask.sum()), expected)
          if text == RISES:   # what was pruned stays so
            self.assertFalse(bool((mask & ~jsp.masks(state)['w/kernel']).any()))

  def test_scores_of_half_precision_do_not_overflow(self):
    w = jnp.asarray([[60000, 50000], [40000, 1]], jnp.float16)
    transform = jsp.prune('saliency', schedule=0.75)
    _, state = transform.init({'kernel': w}, grads={'kernel': w * 0 + jnp.asarray(
        [[1, 2], [8, 1]], jnp.float16)})
    self.assertEqual(jsp.masks(state)['kernel'].tolist(), [[False, False], [True, False]])


class SparsityOneTest(parameterized.TestCase):

  @parameterized.parameters(
      'magnitude(1.0)', 'magnitude(-0.1)', 'magnitude(constant(1.0))', 'magnitude(at_step(3, 1.0))',
      'magnitude(cubic(1.0, end=9))', 'magnitude(linear(0.5, end=9, initial=1.0))',
      'magnitude(cosine(1.0, end=9))', "prune('random', schedule=1.0)", 'static(1.0)', 'rigl(1.0)',
      'snfs(1.0)', 'sparse_evolution(1.0)', 'straight_through(1.0)', 'top_kast(1.0)',
      'top_kast(0.9, backward=1.0)', 'ac_dc(1.0)', 'movement(linear(1.0, end=9))', 'wanda(1.0)',
      'sparsegpt(1.0)', 'optimal_brain(1.0)', 'l0(droprate=1.0)', 'nm(0, 4)', 'sr_ste(0, 4)')
  def test_is_an_error(self, text):
    with self.assertRaisesRegex(ValueError, r'\[0, 1\)|\(0, 1\)|positive'):
      jsp.parse(text)

  def test_of_a_function(self):
    with self.assertRaisesRegex(ValueError, r'sparsity at count 4 must be .* got 1.0'):
      schedules.schedule(lambda count: count / 4, start=0, end=4, every=2)
    for share in (1.0, -0.5, float('nan')):
      all_of_it = lambda layouts, s: dict.fromkeys(layouts, share)
      with self.assertRaisesRegex(ValueError, r'w/kernel: .*sparsity .*\[0, 1\)'):
        jsp.magnitude(0.5, distribution=all_of_it).init(kernels(w=normal(8, 4)))
    with self.assertRaisesRegex(ValueError, r'w/kernel: .*gave no sparsity'):
      jsp.magnitude(0.5, distribution=lambda layouts, s: {}).init(kernels(w=normal(8, 4)))

  @parameterized.parameters('magnitude(0.0)', 'static(0.0)', 'straight_through(0.0)',
                            'rigl(0.0)', 'magnitude(0.0, distribution=erk)',
                            'magnitude(0.0, distribution=pooled)',
                            'magnitude(0.0, pattern=block(3, 3, pad=True))')
  def test_zero_keeps_all(self, text):
    _, state = jsp.parse(text).init(kernels(w=normal(8, 4), v=np.zeros((3, 5), np.float32)))
    self.assertTrue(all(bool(mask.all()) for mask in jsp.masks(state).values()))


SHAPES = st.sampled_from([(1, 1), (1, 7), (7, 1), (3, 5), (2, 4, 3)])
VALUES = (0.0, -0.0, 1.0, -1.0, 2.0, 3e38, -3e38, np.nan, np.inf, 1e-30)


@st.composite
def matrices(draw):
  shape = draw(SHAPES)
  size = int(np.prod(shape))
  pick = lambda: np.array(draw(st.lists(st.sampled_from(VALUES), min_size=size, max_size=size)),
                          np.float32).reshape(shape)
  return pick(), pick(), draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]))


def ranked(x):
  """The order of `rankable`, said by hand."""
  return np.clip(np.where(np.isnan(x), -np.inf, x), -3.4028235e38, 3.4028235e38)


class SearchTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=60)
  @hypothesis.given(matrices())
  def test_drop_and_grow(self, drawn):
    w, scores, seed, fraction = drawn
    size = w.shape[-2] * w.shape[-1]
    active = 1 + seed % size
    order = np.random.default_rng(seed).random((*w.shape[:-2], size)).argsort(-1)
    old = (order < active).reshape(w.shape)
    new = np.asarray(regrowth.drop_and_grow(jnp.asarray(w), jnp.asarray(old), jnp.asarray(scores),
                                            active, fraction))
    np.testing.assert_array_equal(new.sum((-2, -1)), active)
    flat = lambda x: x.reshape(-1, *x.shape[-2:])
    # The oracle takes magnitudes: dropped first is what is not a number.
    drop = np.where(np.isnan(w), 0, ranked(np.abs(w)) + np.float32(1e-20))
    for one, mask, score, found in zip(*map(flat, (drop, old, ranked(scores), new))):
      np.testing.assert_array_equal(found, oracles.drop_and_grow(one, mask, score, fraction))

  @hypothesis.settings(max_examples=6)
  @hypothesis.given(matrices(), st.sampled_from([(1, 1), (2, 2), (3, 2), (9, 9)]))
  def test_patterns_keep_their_count_and_come_back_from_storage(self, drawn, tile):
    w, _, seed, _ = drawn
    w = np.where(np.isfinite(w), w, 0)
    layout = axes.Layout(w.shape, 'float32', axes.default_axes(w.ndim))
    for pattern in (jsp.unstructured(), jsp.block(*tile, pad=True), jsp.channel(),
                    jsp.channel('reduction')):
      units = pattern.units(layout)
      kept = 1 + seed % units
      mask = pattern.mask(jnp.abs(jnp.asarray(w)), kept)
      if pattern.entries:
        np.testing.assert_array_equal(mask.sum((-2, -1)), kept)
      self.assertTrue(bool(mask.any((-2, -1)).all()))
      self.assertEqual(bool(mask.all()), kept == units)
      back = jsp.densify(pattern.pack(jnp.asarray(w), mask, layout))
      np.testing.assert_array_equal(back, np.where(mask, w, 0))

  @hypothesis.settings(max_examples=100)
  @hypothesis.given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1,
                             max_size=6), st.floats(0, 1, exclude_max=True))
  def test_erk_is_a_fraction_and_never_empties_a_weight(self, shapes, sparsity):
    layouts = {str(i): axes.Layout(s, 'float32', axes.default_axes(2))
               for i, s in enumerate(shapes)}
    found = distributions.erk(layouts, sparsity)
    for key, s in found.items():
      self.assertTrue(0 <= s < 1, (s, shapes))
      self.assertGreaterEqual(masking.kept_of(int(np.prod(layouts[key].shape)), s), 1)

  def test_m_beyond_the_rows_is_an_error_that_says_what_fits(self):
    with self.assertRaisesRegex(ValueError, r'w/kernel: the reduction axis of size 1 .* m=4'):
      jsp.nm(2, 4).init(kernels(w=normal(1, 8)))


if __name__ == '__main__':
  absltest.main()
