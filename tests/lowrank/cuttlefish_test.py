"""Cuttlefish's rules against slow restatements of the paper's, and the traps of its public code."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def oracle_rank(w):
  values = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
  return (values**2).sum() / values[0] ** 2


def oracle_switch(sequences, tolerance, window, last, earliest):
  """The first number of epochs at which every sequence has settled, weight by weight, in words."""
  settled = set()
  for t in range(1, 1 + len(next(iter(sequences.values())))):
    for name, sequence in sequences.items():
      smooth = [sequence[0]]
      for x in sequence[1:t]:
        smooth.append(x * 2 / (window + 1) + smooth[-1] * (1 - 2 / (window + 1)))
      if t < max(earliest, 2):
        continue
      moves = []
      for i in range(t):
        before, after = max(i - 1, 0), min(i + 1, t - 1)
        moves.append(abs(smooth[after] - smooth[before]) / (after - before))
      if sum(moves[-last:]) / len(moves[-last:]) <= tolerance:
        settled.add(name)
    if settled == set(sequences):
      return t
  return None


def trajectories(seed, epochs=40):
  """Falling, noisy stable ranks of three weights; some rise again after they have settled."""
  rng = np.random.default_rng(seed)
  t = np.arange(epochs)
  return {name: full * (0.1 + 0.4 * np.exp(-t / tau)) + noise * rng.normal(size=epochs)
          + late * np.maximum(t - 25, 0)
          for name, full, tau, noise, late in [('a', 64, 3.0, 0.02, 0.0), ('b', 16, 5.0, 0.01, 0.0),
                                               ('c', 128, rng.uniform(1, 6), 0.05, 0.5)]}


class SwitchTest(parameterized.TestCase):

  @parameterized.parameters(*range(6))
  def test_scaled_by_full_rank(self, seed):
    x, full = trajectories(seed), {'a': 64, 'b': 16, 'c': 128}
    history = [{n: x[n][t] for n in x} for t in range(40)]
    for window, last, earliest in ((5, 5, 5), (15, 11, 15), (3, 1, 1)):
      rule = dict(window=window, last=last, earliest=earliest)
      when = oracle_switch({n: x[n] / full[n] for n in x}, 4e-3, **rule)
      found = [jsp.ranks_settled(history[:t], full=full, tolerance=4e-3, **rule)
               for t in range(1, 41)]
      self.assertEqual(found.index(True) + 1 if any(found) else None, when)
      self.assertEqual(found, sorted(found))   # a latch: the late rise of c opens nothing

  @parameterized.parameters(*range(6))
  def test_as_the_paper_has_it(self, seed):
    x = trajectories(seed)
    history = [{n: x[n][t] for n in x} for t in range(40)]
    truncated = {n: [float(int(v)) for v in x[n]] for n in x}
    when = oracle_switch(truncated, 0.1, 5, 5, 5)
    found = [jsp.ranks_settled(history[:t], paper=True) for t in range(1, 41)]
    self.assertEqual(found.index(True) + 1 if any(found) else None, when)

  def test_truncation_settles_small_weights_at_once_only_in_the_paper_form(self):
    history = [{'w': 3.9 - 0.08 * t} for t in range(8)]
    self.assertTrue(jsp.ranks_settled(history, paper=True))
    self.assertFalse(jsp.ranks_settled(history, full={'w': 8}))

  def test_bad_histories(self):
    with self.assertRaisesRegex(ValueError, 'need their full ranks'):
      jsp.ranks_settled([{'w': 1.0}] * 5)
    with self.assertRaisesRegex(ValueError, 'w: a stable rank is NaN'):
      jsp.ranks_settled([{'w': math.nan}] * 5, full={'w': 2})
    with self.assertRaisesRegex(ValueError, 'v: not in every entry'):
      jsp.ranks_settled([{'v': 1.0}, *[{'w': 1.0}] * 5], full={'w': 2})
    _, state = jsp.track_stable_rank().init({'w': normal(4, 4)})
    with self.assertRaisesRegex(ValueError, 'holds a measurement twice'):
      jsp.ranks_settled([jsp.stable_ranks(state)] * 5)
    self.assertFalse(jsp.ranks_settled([]))


class RanksTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.params = {'first': {'kernel': normal(24, 16)}, 'attention': {'out': {
        'kernel': normal(4, 8, 20, seed=1)}}, 'stack': {'kernel': normal(2, 18, 30, seed=2)},
                   'conv': {'kernel': normal(3, 3, 8, 12, seed=3)}, 'bias': normal(5)}
    decay = lambda n: jnp.exp(-jnp.arange(n) / 2.0)
    self.trained = dict(self.params)
    self.trained['first'] = {'kernel': self.params['first']['kernel'] * decay(16)[None]}
    self.trained['stack'] = {'kernel': self.params['stack']['kernel']
                             * jnp.stack([decay(30), jnp.ones(30)])[:, None]}
    self.trained['conv'] = {'kernel': self.params['conv']['kernel'] * decay(12)[None, None, None]}
    self.transform = jsp.track_stable_rank(2)
    _, self.state = self.transform.init(self.params)
    self.matrices = {
        'first/kernel': lambda p: [p['first']['kernel']],
        'attention/out/kernel': lambda p: [p['attention']['out']['kernel'].reshape(32, 20)],
        'stack/kernel': lambda p: [*p['stack']['kernel']],
        'conv/kernel': lambda p: [p['conv']['kernel'].reshape(72, 12)]}

  def test_measured_in_the_step_and_at_will(self):
    update = jax.jit(self.transform.update)
    once = update(self.trained, self.state)
    twice = update(self.trained, once)
    expected = {n: np.squeeze([oracle_rank(m) for m in f(self.trained)])
                for n, f in self.matrices.items()}
    for found in (jsp.stable_ranks(twice), jsp.stable_ranks(self.state, self.trained)):
      self.assertEqual(set(found), set(expected))
      for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    for name, f in self.matrices.items():   # one update is not due yet
      before = np.squeeze([oracle_rank(m) for m in f(self.params)])
      np.testing.assert_allclose(jsp.stable_ranks(once)[name], before, rtol=1e-5)
    self.assertEqual([self.transform.spec.due(c) for c in range(4)], [False, True, False, True])
    self.assertEqual((jsp.stable_ranks(self.state).count, jsp.stable_ranks(twice).count), (0, 2))

  @parameterized.parameters((0.0, True, 1), (0.0, True, 4), (0.8, True, 1), (0.0, False, 1))
  def test_chosen_by_name(self, accumulated, scaled, multiple):
    """The misaligned lists of the authors' code, and ranks above the break-even, are impossible."""
    expected = {}
    for name, f in self.matrices.items():
      if name == 'attention/out/kernel':
        continue
      ranks = []
      for before, now in zip(f(self.params), f(self.trained)):
        full = min(before.shape)
        xi = full / oracle_rank(before) if scaled else 1.0
        values = np.linalg.svd(np.asarray(now, np.float64), compute_uv=False)
        floor = next(k for k in range(1, full + 1)
                     if values[:k].sum() >= accumulated * values.sum() - 1e-6)
        ranks.append(max(min(full, math.ceil(xi * oracle_rank(now))),
                         floor if accumulated else 1))
      rows, columns = before.shape
      rank = min(-(-max(ranks) // multiple) * multiple, full)
      if rank * (rows + columns) < rows * columns:
        expected[name] = rank
    found = jsp.choose_ranks(self.state, params=self.trained, accumulated=accumulated,
                             scaled=scaled, multiple=multiple)
    self.assertEqual(found, expected)
    if scaled:
      self.assertNotIn('stack/kernel', found)   # one of its matrices still has full rank
    latents, _ = jsp.low_rank(found).init(self.trained)
    smaller = lambda p: sum(x.size for x in jax.tree.leaves(p))
    self.assertLess(smaller(latents), smaller(self.trained))

  def test_degenerate_weights(self):
    params = {'zero': jnp.zeros((8, 8)), 'one': jnp.ones((8, 8)), 'row': jnp.ones((1, 8))}
    _, state = jsp.track_stable_rank().init(params)
    self.assertEqual({n: float(x) for n, x in jsp.stable_ranks(state).items()},
                     {'zero': 0, 'one': 1, 'row': 1})
    # Zero at init has no scale; rank one at init was taken for full, so it is; a row never pays.
    self.assertEqual(jsp.choose_ranks(state), {})
    gone = jsp.choose_ranks(state, params=params | {'one': jnp.zeros((8, 8))})
    self.assertEqual(gone, {'one': 1})
    with self.assertRaisesRegex(ValueError, 'one: its stable rank is NaN'):
      jsp.choose_ranks(state, params=params | {'one': jnp.full((8, 8), jnp.nan)})
    with self.assertRaisesRegex(ValueError, 'params=params'):
      jsp.choose_ranks(state, accumulated=0.8)
    self.assertEqual({**jsp.stable_ranks(state, params, only=['one'])}, {'one': 1})
    with self.assertRaisesRegex(ValueError, "'two' matches no weight"):
      jsp.stable_ranks(state, only=['two'])
    with self.assertRaisesRegex(ValueError, 'watches no weight'):
      jsp.stable_ranks(jsp.nm(1, 2).init({'w': normal(2, 2)})[1])


def ask(transform, params, state, count, steps=40, notes=None, **about):
  course = jsp.Course(count, steps, 1, notes, **about)
  return transform.spec.next_stage(params, state, course)


class CuttlefishTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.params = {n: {'kernel': normal(16, 16, seed=i)} for i, n in enumerate('abcd')}
    thin = jnp.exp(-jnp.arange(16.0))[None]
    self.thin = {n: {'kernel': p['kernel'] * thin} for n, p in self.params.items()}

  def _run(self, transform, trained, steps=40, **about):
    """Asks after every epoch until something changes; the weights stand still from the first."""
    _, state = transform.init(self.params)
    notes = ask(transform, self.params, state, 0, steps, **about).notes
    for count in range(1, steps):
      turn = ask(transform, trained, state, count, steps, notes, **about)
      notes = turn.notes
      if turn.report is not None:
        return count, turn
    return None, turn

  def test_switches_when_settled_and_warms_up(self):
    count, turn = self._run(jsp.cuttlefish(), self.thin)
    self.assertEqual((count, turn.warmup, turn.report['settled']), (5, 5, True))
    self.assertAlmostEqual(turn.rate, 1 / 3)
    ranks = turn.report['ranks']
    self.assertEqual(set(ranks), {f'{n}/kernel' for n in 'abcd'})
    self.assertEqual(jsp.spell(turn.transform), jsp.spell(jsp.low_rank(ranks)))

  def test_first_and_last_and_slow_layers_stay_whole(self):
    order = tuple(f'{n}/kernel' for n in 'abcd')
    asked = []

    def speedups(names, ratio, by, until):
      asked.append((tuple(names), ratio, by, until))
      return {'b/kernel': 1.2, 'c/kernel': 1.9}

    _, turn = self._run(jsp.cuttlefish(), self.thin, order=order, speedups=speedups)
    self.assertEqual(asked, [(('b/kernel', 'c/kernel'), 0.25, 'time', 1.5)])   # once a run
    self.assertEqual((set(turn.report['ranks']), turn.report['slow']), ({'c/kernel'}, ['b/kernel']))
    _, turn = self._run(jsp.cuttlefish(profile='none'), self.thin, order=order, speedups=speedups)
    self.assertEqual(set(turn.report['ranks']), {'b/kernel', 'c/kernel'})

  def test_weights_near_their_start_are_left_alone(self):
    count, turn = self._run(jsp.cuttlefish(), self.params)
    self.assertEqual((count, turn.transform, turn.report['ranks']), (5, None, {}))
    _, state = jsp.cuttlefish().init(self.params)
    again = ask(jsp.cuttlefish(), self.params, state, 6, notes=turn.notes)
    self.assertIsNone(again.report)   # said once, asked no more

  def test_the_cap(self):
    transform = jsp.cuttlefish(tolerance=0.0, cap=0.25)
    _, state = transform.init(self.params)
    notes, when = None, None
    for count in range(1, 40):   # never at rest
      moving = jax.tree.map(lambda w, c=count: w * jnp.exp(-jnp.arange(16) * (1 + 1 / c))[None],
                            self.params)
      turn = ask(transform, moving, state, count, notes=notes)
      notes = turn.notes
      if turn.transform is not None:
        when = count
        break
    self.assertEqual((when, turn.report['capped'], turn.report['settled']), (10, True, False))

  def test_transformers_have_defaults_of_their_own(self):
    trained = {'query': self.thin['a'], 'up': self.params['b']}   # the latter's rank stays full
    start = {'query': self.params['a'], 'up': self.params['b']}

    def switch(**given):
      transform, notes = jsp.cuttlefish(earliest=99, **given), None   # so the cap ends it
      _, state = transform.init(start)
      for count in range(1, 101):
        turn = ask(transform, trained, state, count, 100, notes)
        notes = turn.notes
        if turn.report is not None:
          return count, turn
      raise AssertionError('it never ended')

    count, turn = switch()
    self.assertEqual((count, turn.rate, turn.warmup % 2), (20, 1.0, 0))
    share = np.cumsum(np.linalg.svd(trained['up']['kernel'], compute_uv=False))
    rank = int(np.searchsorted(share, 0.62 * share[-1]) + 1)
    self.assertEqual(turn.report['wanted']['up/kernel'], rank)
    count, turn = switch(paper=True)
    self.assertEqual((count, turn.rate), (50, 1 / 3))
    self.assertEqual(turn.report['wanted']['up/kernel'], 16)
    count, turn = switch(cap=0.4, rate=0.5)
    self.assertEqual((count, turn.rate), (40, 0.5))

  def test_composes(self):
    chained = jsp.chain(jsp.cuttlefish(), jsp.fake_quantize('int8'))
    params, state = chained.init(self.thin)
    _, s0 = jsp.cuttlefish().init(self.params)
    turn = None
    for count in range(6):
      turn = ask(chained, params, (s0, state[1]), count, notes=turn and turn.notes)
    self.assertRegex(jsp.spell(turn.transform), r"low_rank\(\{.*\}\) \| fake_quantize\('int8'\)")
    opt = optax.sgd(0.1)
    new = jsp.restage(chained, turn.transform, params, (s0, state[1]), opt.init(params), opt)
    self.assertIs(new[1][1], state[1])
    dense = jsp.densify(turn.transform.apply(*new[:2]))
    np.testing.assert_allclose(dense['b']['kernel'], self.thin['b']['kernel'], atol=0.05)
    ruled = jsp.rules([('a/.*', jsp.rigl(0.5)), ('.*', jsp.cuttlefish())])
    params, state = ruled.init(self.params)
    turn = None
    for count in range(6):
      turn = ask(ruled, jax.tree.map(lambda w: w * jnp.exp(-jnp.arange(16.0))[None], params),
                 state, count, notes=turn and turn.notes)
    new = jsp.restage(ruled, turn.transform, params, state, opt.init(params), opt)
    np.testing.assert_array_equal(jsp.masks(new[1])['a/kernel'], jsp.masks(state)['a/kernel'])
    self.assertIs(new[0]['a']['kernel'], params['a']['kernel'])
    backwards = jsp.chain(jsp.nm(2, 4), jsp.cuttlefish())
    with self.assertRaisesRegex(ValueError, 'stands first in a chain'):
      ask(backwards, *backwards.init(self.params), 1)

  @parameterized.parameters(
      dict(cap=1.5), dict(ratio=-1), dict(window=0), dict(profile='guess'), dict(every=0),
      dict(warmup=-1), dict(keep='('), dict(multiple=0), dict(rate=0))
  def test_bad_arguments(self, **wrong):
    with self.assertRaises(ValueError):
      jsp.cuttlefish(**wrong)


class WarmTest(absltest.TestCase):

  def test_moments_of_untouched_weights_go_on_to_the_bit_and_updates_start_small(self):
    """The authors' code drops the momentum and names the product's decay by cutting characters."""
    params = {'a': normal(16, 16), 'b': normal(16, 4, seed=1), 'bias': normal(16, seed=2)}
    tx = optax.adam(0.1)
    opt_state = tx.init(params)
    grads = jax.tree.map(jnp.sin, params)
    for _ in range(3):
      _, opt_state = tx.update(grads, opt_state, params)
    new = jsp.low_rank({'a': 3})
    latents, _, carried = jsp.restage(jsp.identity(), new, params, (), opt_state, tx)
    for moments in ('mu', 'nu'):
      for name in ('b', 'bias'):
        np.testing.assert_array_equal(getattr(carried[0], moments)[name],
                                      getattr(opt_state[0], moments)[name])
    self.assertEqual(int(carried[0].count), 3)
    warm = jsp.warm_again(tx, 4)
    state = jsp.WarmState(carried, jnp.int32(0))
    grads = jax.tree.map(jnp.sin, latents)
    plain, _ = tx.update(grads, carried, latents)
    for share in (0.25, 0.5, 0.75, 1.0, 1.0):
      plain, carried = (tx.update(grads, carried, latents))
      updates, state = warm.update(grads, state, latents)
      np.testing.assert_allclose(updates['b'], share * plain['b'], rtol=1e-6)
    slow, _ = jsp.warm_again(tx, 0, rate=0.5).update(grads, state, latents)
    plain, _ = tx.update(grads, state.inner, latents)
    np.testing.assert_allclose(slow['b'], 0.5 * plain['b'], rtol=1e-6)
    with self.assertRaisesRegex(ValueError, 'steps must be a whole number'):
      jsp.warm_again(tx, -1)
    with self.assertRaisesRegex(ValueError, 'rate must be more than 0'):
      jsp.warm_again(tx, 1, rate=0)


if __name__ == '__main__':
  absltest.main()
