"""Schedules: the target is met exactly at the end; due agrees on host and device; by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

SPELLED = ('constant(0.9)', 'at_step(3, 0.9)', 'cubic(0.9, start=3, end=17, every=5)',
           'linear(0.9, end=7)', 'cosine(0.9, start=2, end=11, every=4, initial=0.25)',
           'cyclic(0.9, cycles=3, start=1, end=30, every=4)', 'iterative(0.9, rounds=5, every=3)',
           'alternating(0.9, start=2, every=3, end=13)')


class SchedulesTest(parameterized.TestCase):

  @parameterized.product(make=['cubic', 'linear', 'cosine'], start=[0, 3], every=[1, 4, 100])
  def test_a_ramp_meets_its_target_exactly(self, make, start, every):
    for end, final, initial in itertools.product((start + 1, start + 10), (0.9, 1 / 3), (0.0, 0.1)):
      schedule = getattr(jsp, make)(final, start=start, end=end, every=every, initial=initial)
      steps, values = schedule.table()
      self.assertEqual((steps[0], steps[-1]), (start, end))
      self.assertEqual((values[0], values[-1]), (initial, final))
      self.assertEqual(values, sorted(values))

  @parameterized.parameters(*SPELLED)
  def test_due_and_entry_agree_with_the_table(self, text):
    schedule = jsp.parse(f'magnitude({text})').spec
    due = [count for count in range(40) if schedule.due(count)]
    made = _made(text)
    self.assertEqual(due, made.table()[0].tolist())
    if made.when is not None:
      found = jax.jit(jax.vmap(made.when.due))(jnp.arange(40))
      np.testing.assert_array_equal(np.flatnonzero(found), due)
      np.testing.assert_array_equal(made.when.due(jnp.arange(40)), found)
    entries = jax.jit(jax.vmap(made.entry))(jnp.arange(40))
    np.testing.assert_array_equal(entries, [sum(d <= c for d in due) for c in range(40)])
    self.assertEqual(made.table()[1][-1], made.final)

  @parameterized.parameters(*SPELLED)
  def test_spelled_and_parsed(self, text):
    self.assertEqual(jsp.spell(jsp.parse(f'magnitude({text})')), f'magnitude({text})')

  def test_cosine_by_hand(self):
    values = jsp.cosine(0.8, start=4, end=8, every=1).table()[1]
    np.testing.assert_allclose(
        values, [0, 0, 0.8 * (1 - np.sqrt(0.5)) / 2, 0.4, 0.8 * (1 + np.sqrt(0.5)) / 2, 0.8])

  def test_cyclic_by_hand(self):
    steps, values = jsp.cyclic(0.8, cycles=2, start=10, end=17, every=2, initial=0.4).table()
    # 10..13 and 14..17, each from 0.4 to 0.8 at its last count.
    middle = 0.8 - 0.4 * (1 / 3) ** 3
    self.assertEqual(steps.tolist(), [10, 12, 13, 14, 16, 17])
    np.testing.assert_allclose(values, [0.4, 0.4, middle, 0.8, 0.4, middle, 0.8], rtol=1e-12)
    self.assertEqual(values[3], 0.8)

  def test_iterative_takes_the_same_fraction_each_round(self):
    steps, values = jsp.iterative(1 - 0.8**4, rounds=4, start=7, every=10).table()
    self.assertEqual(steps.tolist(), [7, 17, 27, 37])
    np.testing.assert_allclose(1 - np.asarray(values), 0.8 ** np.arange(5))
    _, values = jsp.iterative(0.9, rounds=3, initial=0.2).table()
    left = 1 - np.asarray(values)
    np.testing.assert_allclose(left[1:] / left[:-1], (0.1 / 0.8) ** (1 / 3))

  def test_alternating_ends_compressed(self):
    for end in range(2, 12):
      steps, values = jsp.alternating(0.5, start=2, every=3, end=end).table()
      self.assertEqual((steps[-1], values[-1], values[0]), (end, 0.5, 0.0))
      self.assertEqual(values[1:-1], [0.5, 0.0, 0.5, 0.0][:len(values) - 2])

  def test_own_function(self):
    asked = []
    own = lambda count: asked.append(count) or min(count / 10, 0.6)
    schedule = jsp.schedule(own, start=2, end=7, every=4, initial=0.1)
    self.assertEqual(asked, [2, 6, 7])   # integers, once each
    self.assertEqual(schedule.table()[1], [0.1, 0.2, 0.6, 0.6])
    params = {'kernel': jnp.arange(1.0, 11.0).reshape(2, 5)}
    transform = jsp.magnitude(schedule)
    params, state = transform.init(params)
    update = jax.jit(transform.update)
    kept = []
    for _ in range(9):
      state = update(params, state)
      kept.append(int(jsp.masks(state)['kernel'].sum()))
    self.assertEqual(kept, [9, 9, 8, 8, 8, 8, 4, 4, 4])
    self.assertEqual(asked, [2, 6, 7])

  def test_own_function_of_jax_made_while_tracing(self):
    ramp = optax.linear_schedule(0.0, 0.5, 4)

    @jax.jit
    def prune(params):
      transform = jsp.magnitude(jsp.schedule(ramp, start=4, end=4, every=1))
      params, state = transform.init(params)
      for _ in range(5):
        state = transform.update(params, state)
      return transform.apply(params, state)

    self.assertEqual(prune({'kernel': jnp.asarray([[1.0, 2.0]])})['kernel'].tolist(), [[0.0, 2.0]])

  def test_a_falling_schedule_keeps_what_it_has_and_grows_from_zero(self):
    transform = jsp.magnitude(jsp.schedule(
        {0: 0.75, 1: 0.5, 2: 0.75}.get, start=0, end=2, every=1))
    params, state = transform.init({'kernel': jnp.asarray([[4.0, 3.0], [2.0, 1.0]])})
    state = transform.update(params, state)
    self.assertEqual(jsp.masks(state)['kernel'].astype(int).tolist(), [[1, 0], [0, 0]])
    # 9 is larger than the 4 that stays; of the others it comes back first.
    moved = {'kernel': jnp.asarray([[4.0, 3.0], [2.0, 9.0]])}
    grown = transform.update(moved, state)
    self.assertEqual(jsp.masks(grown)['kernel'].astype(int).tolist(), [[1, 0], [0, 1]])
    moved, _ = jsp.realign(optax.sgd(0.1), moved, optax.sgd(0.1).init(moved), state, grown)
    self.assertEqual(moved['kernel'].tolist(), [[4.0, 3.0], [2.0, 0.0]])
    again = transform.update(moved, grown)
    self.assertEqual(jsp.masks(again)['kernel'].astype(int).tolist(), [[1, 0], [0, 0]])

  @parameterized.parameters(
      ('cosine(1.0, end=3)', r'sparsity must be .*got 1.0'),
      ('cyclic(0.5, cycles=0, end=9)', 'cycles must be an integer of at least 1, got 0'),
      ('cyclic(0.5, cycles=True, end=9)', 'cycles must be an integer'),
      ('cyclic(0.5, cycles=6, end=9)', '6 cycles from 0 to 9 leave one fewer than two counts'),
      ('iterative(0.5, rounds=0)', 'rounds must be an integer of at least 1'),
      ('iterative(0.5, rounds=2, every=0)', 'every must be an integer of at least 1'),
      ('alternating(0.5, start=5, every=1, end=4)', 'end must be an integer of at least 5'),
      ('cosine(0.5, start=3, end=3)', 'end must come after start=3'))
  def test_says_what_is_wrong(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.parse(f'magnitude({text})')

  def test_own_function_out_of_range(self):
    with self.assertRaisesRegex(ValueError, r'sparsity at count 4 must be .*got 1.0'):
      jsp.schedule(lambda count: count / 4, start=2, end=4, every=1)


def _made(text):
  """The schedule that `text` spells."""
  return jsp.parse(f'magnitude({text})').spec.spelling.args[0]


if __name__ == '__main__':
  absltest.main()
