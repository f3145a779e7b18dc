"""GPTQ against a slow float64 oracle of algorithm 1, and the size of its program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def scale_of(x, bits, unsigned):
  """The scale and zero point of the columns of `x`."""
  if not unsigned:
    step = np.abs(x).max(0) / (2 ** (bits - 1) - 1)
    return np.where(step > 0, step, 1), np.zeros(x.shape[1])
  low, high = np.minimum(x.min(0), 0), np.maximum(x.max(0), 0)
  step = np.where(high > low, (high - low) / (2**bits - 1), 1)
  return step, np.rint(-low / step)


def rounded(x, step, zero, bits, unsigned):
  low, high = (0, 2**bits - 1) if unsigned else (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
  return (np.clip(np.rint(x / step) + zero, low, high) - zero) * step


def oracle(w, hessian, *, bits=4, unsigned=False, group=None, act_order=False, damping=0.01):
  """Algorithm 1 in float64, one row at a time."""
  w, hessian = w.astype(np.float64), hessian.astype(np.float64)
  rows = len(w)
  group = group or rows
  hessian = hessian + damping * np.diag(hessian).mean() * np.eye(rows)
  order = np.argsort(-np.diag(hessian), kind='stable') if act_order else np.arange(rows)
  static = [scale_of(w[g:g + group], bits, unsigned) for g in range(0, rows, group)]
  hessian, out, work = hessian[np.ix_(order, order)], np.zeros_like(w), w[order]
  upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
  for i, row in enumerate(order):
    if act_order:
      step, zero = static[row // group]
    elif i % group == 0:
      step, zero = scale_of(work[i:i + group], bits, unsigned)
    out[row] = rounded(np.where(w[row], work[i], 0), step, zero, bits, unsigned)
    work[i + 1:] -= np.outer(upper[i, i + 1:], (work[i] - out[row]) / upper[i, i])
  return out


def sample(rows=48, columns=12, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(3 * rows, rows)) @ rng.normal(size=(rows, rows)) * rng.gamma(1, size=rows)
  return rng.normal(size=(rows, columns)).astype(np.float32), (x.T @ x).astype(np.float32)


def loss(new, w, hessian):
  off = np.asarray(new, np.float64) - w
  return np.einsum('ro,rs,so->', off, hessian.astype(np.float64), off)


def run(transform, w, hessian):
  params, state = transform.init({'kernel': w}, stats={'kernel': jnp.asarray(hessian)})
  assert jax.tree.leaves(params) == []
  out = transform.apply(params, state)['kernel']
  packed = transform.pack(params, state)['kernel']
  np.testing.assert_array_equal(packed.todense(), out)
  return np.asarray(out), packed


class GptqTest(parameterized.TestCase):

  @parameterized.product(
      scheme=({}, {'group': 16}, {'group': 7}, {'unsigned': True, 'group': 16}),
      act_order=(True, False))
  def test_loses_no_more_than_the_oracle(self, scheme, act_order):
    dtype = 'uint4' if scheme.get('unsigned') else 'int4'
    transform = jsp.gptq(dtype, group=scheme.get('group'), act_order=act_order)
    nearest = jsp.quantize(dtype, group=scheme.get('group'))
    for seed in range(3):
      w, hessian = sample(seed=seed)
      out, _ = run(transform, w, hessian)
      expected = oracle(w, hessian, act_order=act_order, **scheme)
      # A row in float32 may fall on the other side of a tie, and the rows after it follow.
      self.assertLessEqual(loss(out, w, hessian), 1.02 * loss(expected, w, hessian))
      self.assertGreater((np.abs(out - expected) < 1e-4).mean(), 0.95)
      plain = nearest.apply(*nearest.init({'kernel': w}))['kernel']
      self.assertLess(loss(out, w, hessian), 0.7 * loss(plain, w, hessian))

  @parameterized.parameters((None, True), (16, False))
  def test_what_was_pruned_stays_so(self, group, act_order):
    w, hessian = sample()
    prune, rounding = jsp.nm(2, 4), jsp.gptq('int4', group=group, act_order=act_order)
    out, packed = run(jsp.chain(prune, rounding), w, hessian)
    pruned = np.asarray(prune.apply(*prune.init({'kernel': w}))['kernel'])
    expected = oracle(pruned, hessian, group=group, act_order=act_order)
    self.assertLessEqual(loss(out, pruned, hessian), 1.02 * loss(expected, pruned, hessian))
    self.assertFalse(out[pruned == 0].any())
    # Half the codes of four bits, and two bits each for their places.
    self.assertIsInstance(packed.codes, jsp.formats.NMArray)
    self.assertEqual(packed.nbytes, 48 * 12 * 3 // 8 + packed.scale.nbytes)

  @parameterized.parameters((300, 150, False), (300, 100, True), (270, 64, False), (5, 64, False))
  @pytest.mark.sampled(2)
  def test_blocks_do_not_show(self, rows, group, act_order):
    w, hessian = sample(rows, 4)
    out, packed = run(jsp.gptq('int3', group=group, act_order=act_order), w, hessian)
    expected = oracle(w, hessian, bits=3, group=group, act_order=act_order)
    self.assertLessEqual(loss(out, w, hessian), 1.02 * loss(expected, w, hessian))
    self.assertEqual(packed.scale.shape, (-(-rows // group), 4))

  def test_stacks_dead_inputs_and_narrow_types(self):
    ws, hessians = zip(*(sample(8, 6, seed) for seed in range(2)))
    hessians = np.stack(hessians)
    hessians[1, 3], hessians[1, :, 3] = 0, 0
    stack = np.stack(ws)
    transform = jsp.gptq('int4', granularity='tensor')
    out, _ = run(transform, jnp.asarray(stack, jnp.bfloat16), hessians)
    self.assertEqual(out.dtype, jnp.bfloat16)
    one, _ = run(transform, jnp.asarray(stack[0], jnp.bfloat16), hessians[0])
    np.testing.assert_array_equal(out[0], one)
    nearest = jsp.quantize('int4', granularity='tensor')
    plain = nearest.apply(*nearest.init({'kernel': jnp.asarray(stack, jnp.bfloat16)}))['kernel']
    np.testing.assert_array_equal(out[1, 3], plain[1, 3])

  def test_the_program_does_not_grow_with_the_rows(self):
    def lines(rows):
      shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((rows, 8), (rows, rows))]
      init = lambda w, g: jsp.gptq(group=32).init({'kernel': w}, stats={'kernel': g})
      return len(jax.jit(init).lower(*shapes).as_text().splitlines())
    self.assertEqual(lines(256), lines(1024))

  def test_layer_by_layer(self):
    rng = np.random.default_rng(0)
    params = {'up': {'kernel': jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)},
              'down': {'kernel': jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)}}
    x = jnp.asarray(rng.normal(size=(64, 16)) @ rng.normal(size=(16, 16)), jnp.float32)
    fn = lambda p, x: jax.nn.relu(x @ p['up']['kernel']) @ p['down']['kernel']
    errors = []
    for sequential in (True, False):
      transform = jsp.gptq('int3')
      latents, state = jsp.one_shot(transform, fn, params, [x], sequential=sequential)
      errors.append(float(jnp.square(fn(transform.apply(latents, state), x) - fn(params, x)).sum()))
    nearest = jsp.quantize('int3')
    plain = fn(nearest.apply(*nearest.init(params)), x)
    self.assertLess(max(errors), 0.7 * float(jnp.square(plain - fn(params, x)).sum()))
    hidden = jax.nn.relu(x @ transform.apply(latents, state)['up']['kernel'])
    down = jsp.one_shot(jsp.gptq('int3'), fn, params, [x])[1].weights['down/kernel']
    expected, _ = run(jsp.gptq('int3'), params['down']['kernel'], np.asarray(hidden.T @ hidden))
    np.testing.assert_array_equal(down.todense(), expected)

  def test_after_pruning(self):
    w, hessian = sample()
    transform = jsp.chain(jsp.sparsegpt(0.5), jsp.gptq('int4', group=16))
    params, state = transform.init({'kernel': w}, stats={'kernel': jnp.asarray(hessian)})
    out = transform.apply(params, state)['kernel']
    self.assertTrue(np.isfinite(out).all())

  def test_spelled_and_refused(self):
    text = "gptq('uint4', group=64, scale='mse', act_order=False, damping=0.1)"
    self.assertEqual(jsp.spell(jsp.parse(text)), text)
    for text, message in (('gptq("int4", act_order="False")', "act_order must be .* got 'False'"),
                          ('gptq("int4", damping=2)', r'damping must be .* in \[0, 1\], got 2'),
                          ('gptq("int4", group=(4, 4))', 'got block'),
                          ('gptq("int9")', 'is not a grid')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.parse(text)
    w, hessian = sample()
    with self.assertRaisesRegex(ValueError, 'kernel: no statistics'):
      jsp.gptq().init({'kernel': w})
    with self.assertRaisesRegex(ValueError, 'kernel: the Gram .* larger damping'):
      jsp.gptq(damping=0.0).init({'kernel': w}, stats={'kernel': -jnp.asarray(hessian)})


if __name__ == '__main__':
  absltest.main()
