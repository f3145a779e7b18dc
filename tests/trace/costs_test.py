"""Cost tables: what is measured, kept, chosen and said."""

import dataclasses
import functools
import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse import formats
from jaxsparse.numerics import axes
from jaxsparse.trace import cost_cache
from jaxsparse.trace import costs as costs_of
from tests.trace import stored


@functools.partial(jax.tree_util.register_dataclass, data_fields=['m'], meta_fields=['layout'])
@dataclasses.dataclass(frozen=True)
class Ways(formats.Format):
  """A weight whose ways to multiply differ in value, so that a result says which was taken."""

  m: Any
  layout: axes.Layout

  def dense_matrix(self):
    return self.m

  def matmul(self, x):
    return x @ self.m

  def matmuls(self):
    return {'stored': self.matmul, 'twice': lambda x: 2 * (x @ self.m)}


def ways(*shape):
  return Ways(jnp.ones(shape), stored.layout_of(jnp.ones(shape)))


def table(weight, **rows_and_costs):
  """A table by hand: `x4=(dense, stored, twice)`."""
  names = (costs_of.DENSE, 'stored', 'twice')
  return jsp.Costs({f'{costs_of.description(weight)} {rows}': dict(zip(names, found))
                    for rows, found in rows_and_costs.items()})


class CostsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder, 'cache', 'costs.json')

  def test_the_cheapest_way_for_the_rows_at_hand_is_taken(self):
    w = ways(8, 4)
    costs = table(w, x4=(2.0, 1.0, 3.0), x64=(2.0, 3.0, 1.0))
    run = jax.jit(jsp.dispatch(lambda p, x: x @ p['w'], costs=costs))
    # The nearest measured number of rows, and what is known of none, as it is stored.
    for rows, factor in ((3, 1), (5, 1), (64, 2), (100, 2), (1000, 1)):
      np.testing.assert_array_equal(run({'w': w}, jnp.ones((rows, 8))), factor * 8)

  def test_layers_of_a_scan_and_transposes_are_chosen_for_too(self):
    stack = ways(3, 8, 8)
    costs = table(stack, x2=(2.0, 3.0, 1.0))
    self.assertEqual(costs.table, table(ways(8, 8), x2=(2.0, 3.0, 1.0)).table)
    scan = lambda p, x: jax.lax.scan(lambda c, w: (c @ w, None), x, p['w'])[0]
    out = jax.jit(jsp.dispatch(scan, costs=costs))({'w': stack}, jnp.ones((2, 8)))
    np.testing.assert_array_equal(out, 16.0 ** 3)
    turned = Ways(jnp.ones((8, 8)), stored.layout_of(jnp.ones((8, 8)), ((1,), (0,))))
    out = jsp.dispatch(lambda p, x: x @ p['w'].T, costs=costs)({'w': turned}, jnp.ones((2, 8)))
    np.testing.assert_array_equal(out, 16)

  def test_what_no_way_makes_fast_is_held_dense(self):
    packed = {'slow': ways(8, 4), 'fast': ways(4, 8), 'array': jnp.ones(3)}
    entries = {**table(packed['slow'], x1=(1.0, 2.0, 1.06)).table,
               **table(packed['fast'], x1=(1.0, 2.0, 1.04)).table}
    held = jsp.fastest(packed, jsp.Costs(entries), rows=1)
    self.assertEqual({k: formats.is_format(v) for k, v in held.items()},
                     {'slow': False, 'fast': True, 'array': False})
    np.testing.assert_array_equal(held['slow'], np.ones((8, 4)))
    self.assertTrue(formats.is_format(jsp.fastest(packed, jsp.Costs(), rows=1)['slow']))

  def test_measured_once_and_kept(self):
    packed = {'a': stored.factors(jnp.ones((8, 4))), 'b': stored.factors(jnp.ones((8, 4))),
              'stack': stored.factors(jnp.ones((2, 8, 4)))}
    with self.assertLogs('absl', 'INFO') as logs:
      costs = jsp.measure_costs(packed, 2, cache=self.path)
    self.assertLen([line for line in logs.output if 'Measuring' in line], 1)
    self.assertEqual({r.kind for r in costs.ratios(packed['stack'], 2).values()}, {'measured'})
    with self.assertNoLogs('absl', 'INFO'):
      self.assertEqual(jsp.measure_costs(packed, [2], cache=self.path), costs)
    self.assertEqual([p.name for p in self.path.parent.iterdir()], ['costs.json'])
    content = json.loads(self.path.read_text())
    machine, = content['machines']
    self.assertIn(jax.__version__, machine)
    content['machines'] = {'another': content['machines'][machine]}
    self.path.write_text(json.dumps(content))
    self.assertEqual(cost_cache.read(self.path), {})
    cost_cache.write(self.path, {'k x1': {'dense array': 1.0}})
    self.assertLen(json.loads(self.path.read_text())['machines'], 2)

  @parameterized.parameters('', '{', '[]', '\0', '{"form": 1}',
                            '{"form": 1, "machines": {"m": {"k": 3}}}',
                            '{"form": 1, "machines": {"m": {"k": {"way": "fast"}}}}')
  def test_a_damaged_cache_is_rebuilt_and_said(self, content):
    self.path.parent.mkdir()
    self.path.write_text(content)
    with self.assertLogs('absl', 'WARNING') as logs:
      self.assertEqual(cost_cache.read(self.path), {})
    self.assertIn(str(self.path), logs.output[0])
    cost_cache.write(self.path, {'k x1': {'dense array': 1.0}})
    self.assertEqual(cost_cache.read(self.path), {'k x1': {'dense array': 1.0}})

  def test_a_cache_that_cannot_be_written_is_said(self):
    self.path.parent.write_text('a file')
    with self.assertLogs('absl', 'WARNING'):
      cost_cache.write(self.path, {'k x1': {'dense array': 1.0}})

  def test_compiled_costs_follow_the_work(self):
    w = jax.random.normal(jax.random.key(0), (256, 256))
    packed = {'thin': stored.factors(w), 'decoded': stored.two_four(w)}
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), packed)
    costs = jsp.compile_costs(abstract, 128)
    thin, decoded = (costs.ratios(packed[k], 128)['stored'] for k in ('thin', 'decoded'))
    self.assertEqual(thin.kind, 'compiled')
    self.assertLess(thin.value, 0.5)
    self.assertGreater(decoded.value, 1)

  def test_explain(self):
    packed = {'a': ways(8, 4), 'b': {'w': jnp.ones((4, 4), jnp.bfloat16)}, 'bias': jnp.ones(4),
              'c': stored.sparse_int8(jax.random.normal(jax.random.key(0), (8, 4)))}
    costs = table(packed['a'], x2=(1.0, 3.0, 1.5))
    found = jsp.explain(packed, 2, costs=costs)
    self.assertEqual([(w.weight, w.kernel, w.kind, w.slower) for w in found.weights],
                     [('a', 'twice', 'measured', True), ('b/w', 'dense', 'declared', False),
                      ('c', 'stored', 'declared', False)])
    self.assertEqual([w.bytes for w in found.weights[:2]], [128, 32])
    self.assertEqual(found.weights[2].format, 'QArray of NMArray')
    for text in (str(found), found._repr_html_()):
      for word in ('twice', '1.50!', 'measured', 'declared', 'fastest', 'QArray of NMArray'):
        self.assertIn(word, text)

  def test_without_packed_weights_dispatch_changes_no_program(self):
    fn = lambda p, x: jnp.tanh(x @ p['w'])
    args = {'w': jnp.ones((8, 4))}, jnp.ones((2, 8))
    text = lambda f: jax.jit(f).lower(*args).as_text()
    self.assertEqual(text(jsp.dispatch(fn, costs=table(ways(8, 4), x2=(1.0, 1.0, 1.0)))), text(fn))

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'rows must be positive'):
      jsp.measure_costs({}, 0, cache=self.path)
    with self.assertRaisesRegex(ValueError, 'rows must be positive'):
      jsp.explain({}, rows=0)
    with self.assertRaisesRegex(TypeError, 'outside of jit'):
      jax.jit(lambda p: jsp.measure_costs(p, 1, cache=self.path) and 0)({'w': ways(8, 4)})


if __name__ == '__main__':
  absltest.main()
