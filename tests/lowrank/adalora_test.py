"""AdaLoRA against a slow restatement of its importance and budget, in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

_TEXT = 'adalora(3, alpha=6.0, schedule=linear(0.5, start=1, end=3, every=1), orthogonality=0)'
_SHAPES = {'stack': (2, 6, 5), 'dense': (4, 7)}


def normal(rng, shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def restated(history, counts):
  """{name: kept [.., rank]} of equations 7 to 12, over recorded latents and weight gradients."""
  mean, spread, kept = {}, {}, {}
  for (latents, grads), count in zip(history, counts):
    for name, grad in grads.items():
      p, values, q = (np.float64(x) for x in latents[name])
      seen = np.where(kept.get(name, True), values, 0)
      scale = 6.0 / values.shape[-1]
      by_p = scale * grad @ np.swapaxes(q * np.swapaxes(seen, -1, -2), -1, -2)
      by_q = scale * np.swapaxes(p * seen, -1, -2) @ grad
      by_v = np.stack([[scale * np.diag(pi.T @ gi @ qi.T)] for pi, gi, qi in zip(
          p.reshape(-1, *p.shape[-2:]), grad.reshape(-1, *grad.shape[-2:]),
          q.reshape(-1, *q.shape[-2:]))]).reshape(values.shape)
      now = [np.abs(x * g) for x, g in ((p, by_p), (values, by_v), (q, by_q))]
      old = mean.get(name, [0, 0, 0])
      mean[name] = [0.85 * m + 0.15 * n for m, n in zip(old, now)]
      spread[name] = [0.85 * s + 0.15 * np.abs(n - m) for s, n, m in zip(
          spread.get(name, [0, 0, 0]), now, mean[name])]
    if count is None:
      continue
    scores = []
    for name in grads:
      sp, sv, sq = (m * s for m, s in zip(mean[name], spread[name]))
      scores.append(sv[..., 0, :] + sp.mean(-2) + sq.mean(-1))
    flat = np.concatenate([s.ravel() for s in scores])
    chosen = np.zeros(flat.size, bool)
    chosen[np.argsort(-flat, kind='stable')[:count]] = True
    parts = np.split(chosen, np.cumsum([s.size for s in scores])[:-1])
    kept = {name: part.reshape(*s.shape[:-1], 1, s.shape[-1])
            for name, part, s in zip(grads, parts, scores)}
  return kept


class AdaLoraTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  @pytest.mark.sampled(1)
  def test_budget_and_importance(self, host):
    rng = np.random.default_rng(0)
    transform = jsp.parse(_TEXT)
    params = {name: normal(rng, shape) for name, shape in sorted(_SHAPES.items())}
    latents, state = jax.jit(transform.init)(params)
    chex.assert_trees_all_equal(jsp.merge(transform, latents, state), params)
    update = jax.jit(transform.update, static_argnames='refresh')
    history, total = [], 3 + 2 * 3
    for step in range(4):
      latents = jax.tree.map(lambda x: x + 0.3 * normal(rng, x.shape), latents)
      grads = {name: normal(rng, shape) for name, shape in sorted(_SHAPES.items())}
      history.append((latents, jax.tree.map(np.float64, grads)))
      state = update(latents, state, grads=grads,
                     refresh=transform.spec.due(step) if host else None)
    counts = [None, total, total - round(total * 0.25), total - round(total * 0.5)]
    expected = restated(history, counts)
    for name in params:
      np.testing.assert_array_equal(state.weights[name].kept, expected[name])
    self.assertEqual(sum(int(s.kept.sum()) for s in state.weights.values()), counts[-1])
    p, values, q = (np.float64(x) for x in latents['dense'])
    product = 2.0 * (p * np.where(expected['dense'], values, 0)) @ q
    np.testing.assert_allclose(jsp.merge(transform, latents, state)['dense'],
                               np.float64(params['dense']) + product, atol=1e-4)
    settled = state.weights['dense'].settled(latents['dense'])
    fresh = transform.init(params)[1]
    chex.assert_trees_all_close(
        jsp.merge(transform, latents | {'dense': settled}, fresh)['dense'],
        jsp.merge(transform, latents, state)['dense'], atol=1e-6)

  def test_the_penalty_is_the_gradient_of_its_formula(self):
    rng = np.random.default_rng(1)
    transform = jsp.adalora(3, schedule=jsp.at_step(9, 0.5), orthogonality=0.7)
    latents, state = transform.init({'w': normal(rng, (6, 5))})
    latents = jax.tree.map(lambda x: x + normal(rng, x.shape), latents)
    eye = jnp.eye(3)
    penalty = lambda x: 0.7 * (jnp.square(x['w'].p.T @ x['w'].p - eye).sum()
                               + jnp.square(x['w'].q @ x['w'].q.T - eye).sum())
    view = jax.grad(lambda x: 0.0 * jsp.merge(transform, x, state)['w'].sum())
    chex.assert_trees_all_close(jax.jit(view)(latents), jax.grad(penalty)(latents), rtol=1e-4)

  def test_it_trains_and_rank_goes_where_it_matters(self):
    rng = np.random.default_rng(2)
    base = {name: normal(rng, (8, 8)) for name in ('moved', 'still')}
    target = base['moved'] + 2 * normal(rng, (8, 3)) @ normal(rng, (3, 8))
    transform = jsp.adalora(4, schedule=jsp.cubic(0.5, start=20, end=100, every=10))
    tx = optax.adam(0.03)
    loss = lambda p: jnp.square(p['moved'] - target).mean() + jnp.square(
        p['still'] - base['still']).mean()
    ts = jsp.TrainState.create(transform, tx, base)
    step = jsp.train_step(loss, tx, transform)
    for _ in range(150):
      ts, value, _ = step(ts)
    kept = {name: int(s.kept.sum()) for name, s in ts.state.weights.items()}
    self.assertEqual(sum(kept.values()), 4)
    self.assertGreaterEqual(kept['moved'], 3)
    self.assertLess(float(value), 0.5)

  @parameterized.parameters(
      ({'rank': 0}, 'rank must be'), ({'schedule': 0.5}, 'schedule must say when'),
      ({'betas': (1.0, 0.5)}, 'betas must be'), ({'betas': 0.5}, 'betas must be'),
      ({'orthogonality': -1}, 'orthogonality must be'), ({'schedule': 'cubic'}, 'sparsity must be'))
  def test_bad(self, changes, message):
    arguments = {'rank': 4, 'schedule': jsp.at_step(3, 0.5)} | changes
    with self.assertRaisesRegex(ValueError, message):
      jsp.adalora(**arguments)


if __name__ == '__main__':
  absltest.main()
