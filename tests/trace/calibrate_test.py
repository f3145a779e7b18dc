"""calibrate on stock models, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import trace
from jaxsparse.core import names
from tests.trace import models
from tests.trace import stored


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


class CalibrateTest(parameterized.TestCase):

  @parameterized.named_parameters((model, model) for model in models.ALL)
  def test_every_kernel_has_a_statistic_that_matches_its_matrix(self, model):
    fn, params, x = models.ALL[model]()
    stats = trace.calibrate(fn, params, [x, x], trace.gram)
    axes = trace.axes_of(fn, params, x)
    leaves, _ = names.named_leaves(params)
    looked_up = {'embed/embedding'}
    kernels = {leaf.name: leaf.value for leaf in leaves if leaf.is_weight
               and not leaf.name.endswith(('bias', 'scale'))}
    self.assertEqual(set(stats), set(kernels) - looked_up)
    for name, statistic in stats.items():
      rows = stored.layout_of(kernels[name], axes[name]).matrix_shape[-2]
      self.assertEqual(statistic.shape[-2:], (rows, rows))
      self.assertEqual(statistic.dtype, jnp.float32)
      np.testing.assert_allclose(statistic, jnp.swapaxes(statistic, -1, -2), rtol=1e-5, atol=1e-5)

  def test_batches(self):
    params, x = {'w': normal(6, 4)}, normal(5, 6)

    def fn(p, x, scale=None, skip=False):
      x = x['a'] if isinstance(x, dict) else x
      x = x if scale is None else x * scale
      return x if skip else x @ p['w']
    one = trace.calibrate(fn, params, [x], trace.gram)['w']
    for batches in ([(x,)], iter([x]), [{'a': x}], [(x, 1.0)], [(x, None, False)],
                    [np.asarray(x)], [x[:2], x[2:]], [(x, jnp.float32(1))]):
      np.testing.assert_allclose(trace.calibrate(fn, params, batches, trace.gram)['w'], one,
                                 rtol=1e-5, atol=1e-5)

  def test_compiles_once(self):
    calls = []

    def fn(p, x):
      calls.append(1)
      return x @ p['w']
    trace.calibrate(fn, {'w': normal(6, 4)}, [normal(5, 6, seed=i) for i in range(4)], trace.gram)
    self.assertLen(calls, 1)

  def test_low_precision_is_accumulated_in_float32(self):
    x = jnp.full((3000, 2), 1.0, jnp.bfloat16)
    fn = lambda p, x: x @ p['w']
    stats = trace.calibrate(fn, {'w': jnp.ones((2, 2), jnp.bfloat16)}, [x, x], trace.gram)
    np.testing.assert_array_equal(stats['w'], np.full((2, 2), 6000.0))

  def test_a_function_of_its_own(self):
    largest = trace.Observer(lambda c, x: jnp.abs(x).max(), jnp.maximum, lambda s: 2 * s)
    stats = trace.calibrate(lambda p, x: x @ p['w'], {'w': normal(6, 4)},
                            [normal(5, 6), 9 * normal(5, 6)], largest)
    np.testing.assert_allclose(stats['w'], 18 * jnp.abs(normal(5, 6)).max(), rtol=1e-6)

  def test_integer_inputs(self):
    x = jnp.array([[1, 0, 2]], jnp.int8)
    fn = lambda p, x: jax.lax.dot_general(x, p['w'], (((1,), (0,)), ((), ())),
                                          preferred_element_type=jnp.int32)
    stats = trace.calibrate(fn, {'w': jnp.ones((3, 2), jnp.int8)}, [x], trace.gram)
    np.testing.assert_array_equal(stats['w'], [[1, 0, 2], [0, 0, 0], [2, 0, 4]])

  @parameterized.named_parameters(
      ('no batches', {'w': 1.0}, [], 'no batches'),
      ('NaN weight', {'w': 1.0, 'v': float('nan')}, [1.0], "'v' holds NaN"),
      ('NaN input', {'w': 1.0}, [float('nan')], "statistic of 'w' is not finite"),
      ('infinite input', {'w': 1.0}, [1.0, float('inf')], "statistic of 'w' is not finite"),
      ('overflow', {'w': 1.0}, [1e30], "statistic of 'w' is not finite"))
  def test_refuses(self, values, inputs, message):
    params = {k: jnp.full((3, 2), v) for k, v in values.items()}
    batches = [jnp.full((4, 3), v) for v in inputs]
    with self.assertRaisesRegex(ValueError, message):
      trace.calibrate(lambda p, x: x @ p['w'], params, batches, trace.gram)

  @parameterized.parameters('range_', 'input_max', 'histogram')
  def test_refuses_one_nan_among_many(self, observer):
    # XLA:CPU's maximum of so many loses it.
    x = normal(2000, 4).at[77, 1].set(jnp.nan)
    with self.assertRaisesRegex(ValueError, "statistic of 'w' is not finite"):
      trace.calibrate(lambda p, x: x @ p['w'], {'w': jnp.ones((4, 2))}, [x],
                      getattr(trace, observer))

  def test_refuses_range_of_nothing_and_nan_in_a_format(self):
    fn = lambda p, x: x @ p['w']
    with self.assertRaisesRegex(ValueError, "'w' is not finite"):
      trace.calibrate(fn, {'w': jnp.ones((3, 2))}, [jnp.zeros((0, 3))], trace.range_)
    packed = stored.factors(normal(8, 4))
    bad = jax.tree.map(lambda a: a.at[0, 0].set(jnp.nan), packed)
    with self.assertRaisesRegex(ValueError, "'w' holds NaN"):
      trace.calibrate(fn, {'w': bad}, [normal(3, 8)], trace.gram)

  def test_zero_rows_are_an_empty_sum(self):
    stats = trace.calibrate(lambda p, x: x @ p['w'], {'w': jnp.ones((3, 2))},
                            [jnp.zeros((0, 3)), jnp.ones((1, 3))], trace.gram)
    np.testing.assert_array_equal(stats['w'], np.ones((3, 3)))


if __name__ == '__main__':
  absltest.main()
