"""Section 3 of the design, as written, on linen and on NNX: cases 1 to 5 and 8."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from tests.use_cases import models

both = parameterized.parameters(*models.PROBLEMS)
STEPS = 40


def train(problem, transform, tx, steps=STEPS):
  """The explicit loop of the design."""
  params, state = transform.init(problem.params)
  opt_state, extra = tx.init(params), problem.extra
  grad_fn = jsp.value_and_grad(problem.loss_fn, transform, has_aux=True)

  @jax.jit
  def step(params, state, opt_state, extra, key, batch):
    (loss, extra), grads, effective_grads = grad_fn(params, state, extra, key, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    new_state = transform.update(params, state, grads=effective_grads)
    params, opt_state = jsp.realign(tx, params, opt_state, state, new_state)
    return params, new_state, opt_state, extra, loss

  losses = []
  for key in jax.random.split(jax.random.key(1), steps):
    params, state, opt_state, extra, loss = step(
        params, state, opt_state, extra, key, problem.batch)
    losses.append(float(loss))
  assert step._cache_size() == 1
  assert losses[-1] < losses[0], losses
  return params, state, opt_state


class UseCasesTest(parameterized.TestCase):

  @both
  def test_1_gradual_magnitude(self, kind):
    problem = models.PROBLEMS[kind]()
    schedule = jsp.cubic(0.9, start=5, end=33, every=10)
    transform = jsp.at('(.*/)?kernel', jsp.magnitude(schedule))
    params, state, _ = train(problem, transform, optax.adam(1e-2))
    for name, mask in jsp.masks(state).items():
      self.assertEqual(int(mask.sum()), mask.size - round(0.9 * mask.size), name)
    effective = transform.apply(params, state)
    chex.assert_trees_all_equal_structs(effective, problem.params)

  @both
  def test_1_in_a_codebase_that_only_knows_optax(self, kind):
    problem = models.PROBLEMS[kind]()
    transform = jsp.at('(.*/)?kernel', jsp.magnitude(jsp.cubic(0.9, start=2, end=8, every=2)))
    tx = jsp.wrap(optax.adam(1e-2), transform)
    params, opt_state = problem.params, tx.init(problem.params)

    @jax.jit
    def step(params, opt_state):
      view = transform.apply(params, opt_state.transform)
      grads, _ = jax.grad(problem.loss_fn, has_aux=True)(
          view, problem.extra, jax.random.key(0), problem.batch)
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    for _ in range(10):
      params, opt_state = step(params, opt_state)
    self.assertAlmostEqual(jsp.sparsity(opt_state.transform), 0.9, places=2)

  @both
  def test_2_rigl(self, kind):
    problem = models.PROBLEMS[kind]()
    transform = jsp.at('(.*/)?kernel', jsp.rigl(0.9, distribution=jsp.erk, every=5, end=30))
    first = jsp.masks(transform.init(problem.params)[1])
    _, state, _ = train(problem, transform, optax.adam(1e-2))
    last = jsp.masks(state)
    for name, mask in last.items():
      self.assertEqual(int(mask.sum()), int(first[name].sum()), name)
    self.assertTrue(any((first[n] != last[n]).any() for n in last))
    self.assertAlmostEqual(jsp.sparsity(state), 0.9, delta=0.01)

  @both
  def test_3_two_four_and_int8_of_weights_and_activations(self, kind):
    problem = models.PROBLEMS[kind]()
    transform = jsp.at('(.*/)?kernel', jsp.chain(
        jsp.nm(2, 4), jsp.fake_quantize('int8', granularity='channel')))
    params, state, _ = train(problem, transform, optax.adam(1e-2))
    apply_fn = jsp.quantize_activations(problem.apply_fn, 'int8')
    x = problem.batch[0]
    effective = jsp.densify(transform.apply(params, state))
    plain = problem.apply_fn(effective, x)
    quantized = jax.jit(apply_fn)(effective, x)
    self.assertLess(float(jnp.abs(quantized - plain).max()), 0.1 * float(jnp.abs(plain).max()))
    self.assertGreater(float(jnp.abs(quantized - plain).max()), 0.0)
    packed = transform.pack(params, state)
    np.testing.assert_allclose(
        jax.jit(jsp.dispatch(problem.apply_fn))(packed, x), plain, rtol=1e-4, atol=1e-5)
    self.assertLess(jsp.nbytes(packed), 0.4 * jsp.nbytes(problem.params))

  @both
  def test_4_lsq_with_a_rate_of_its_own(self, kind):
    problem = models.PROBLEMS[kind]()
    transform = jsp.at('(.*/)?kernel', jsp.lsq(bits=4))
    label = jsp.label({'.*/step_size': 's', '.*': 'w'})
    steps = lambda params: [x.step_size for x in jax.tree.leaves(
        params, is_leaf=lambda x: isinstance(x, jsp.Lsq)) if isinstance(x, jsp.Lsq)]
    before = steps(transform.init(problem.params)[0])
    frozen = optax.partition({'w': optax.adam(1e-2), 's': optax.set_to_zero()}, label)
    chex.assert_trees_all_equal(steps(train(problem, transform, frozen)[0]), before)
    moving = optax.partition({'w': optax.adam(1e-2), 's': optax.adam(1e-3)}, label)
    after = steps(train(problem, transform, moving)[0])
    self.assertTrue(all(float(jnp.abs(a - b)) > 0 for a, b in zip(after, before)))

  @both
  def test_5_lora_on_a_frozen_nf4_base(self, kind):
    problem = models.PROBLEMS[kind]()
    pattern = '(Dense_0|hidden|head)/kernel'
    transform = jsp.at(pattern, jsp.lora(rank=2, alpha=32, base=jsp.nf4(group=8)))
    before, _ = transform.init(problem.params)
    params, state, opt_state = train(problem, transform, optax.adam(1e-2))
    factors = [x for x in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, jsp.Lora))
               if isinstance(x, jsp.Lora)]
    self.assertTrue(factors)
    self.assertTrue(all(float(jnp.abs(f.b).max()) > 0 for f in factors))
    chex.assert_trees_all_equal_shapes(opt_state[0].mu, before)
    packed = transform.pack(params, state)
    np.testing.assert_allclose(
        jsp.dispatch(problem.apply_fn)(packed, problem.batch[0]),
        problem.apply_fn(jsp.densify(packed), problem.batch[0]), rtol=1e-4, atol=1e-5)

  def test_8_experts(self):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[-2] ** 0.5, 'float32')
    params = {'moe': {'router': {'kernel': draw(16, 4)},
                      'experts': {'up': {'kernel': draw(4, 16, 32)},
                                  'down': {'kernel': draw(4, 32, 16)}}},
              'head': {'kernel': draw(16, 8), 'bias': jnp.zeros(8)}}
    transform = jsp.rules([
        ('.*/router/.*', jsp.identity()),
        ('.*/experts/.*kernel', jsp.chain(jsp.nm(2, 4), jsp.fake_quantize('int8'))),
        ('(.*/)?kernel', jsp.fake_quantize('int8')),
        ('.*', jsp.identity()),
    ])

    def apply_fn(p, x):
      gate = jax.nn.softmax(x @ p['moe']['router']['kernel'])
      experts = p['moe']['experts']
      hidden = jax.nn.relu(jnp.einsum('bd,edf->ebf', x, experts['up']['kernel']))
      out = jnp.einsum('ebf,efd->ebd', hidden, experts['down']['kernel'])
      return jnp.einsum('be,ebd->bd', gate, out) @ p['head']['kernel'] + p['head']['bias'][None]

    x = draw(12, 16)
    problem = models.Problem(
        params, (), lambda p, extra, key, batch: ((apply_fn(p, batch) ** 2).mean(), extra),
        apply_fn, x)
    trained, state, _ = train(problem, transform, optax.adam(1e-2))
    for name, mask in jsp.masks(state).items():
      self.assertIn('experts', name)
      groups = mask.reshape(4, -1, 4, mask.shape[-1]).sum(2)
      self.assertTrue((groups == 2).all(), name)
    packed = transform.pack(trained, state)
    self.assertIs(packed['moe']['router']['kernel'], trained['moe']['router']['kernel'])
    np.testing.assert_allclose(jax.jit(jsp.dispatch(apply_fn))(packed, x),
                               apply_fn(jsp.densify(packed), x), rtol=1e-4, atol=1e-5)
    spelled = jsp.spell(transform)
    self.assertEqual(jsp.spell(jsp.parse(spelled)), spelled)


if __name__ == '__main__':
  absltest.main()
