"""The plan says what will happen, and its bytes are those of the packed tree."""

import jax
import jax.numpy as jnp
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

PARAMS = {'conv': {'kernel': jnp.ones((3, 3, 4, 8)), 'bias': jnp.ones(8)},
          'head': {'kernel': jax.random.normal(jax.random.key(0), (16, 8))},
          'table': {'ids': jnp.ones((4, 4), jnp.int32)}}


class PlanTest(parameterized.TestCase):

  def test_rows_say_why_a_weight_stays_dense(self):
    rows = {row.name: row for row in jsp.plan(jsp.at('head/kernel', jsp.nm(2, 4)), PARAMS)}
    self.assertEqual(rows['conv/bias'].scheme, 'dense: rank below 2')
    self.assertEqual(rows['conv/kernel'].scheme, 'dense: not selected')
    self.assertEqual(rows['table/ids'].scheme, 'dense: dtype int32')
    self.assertEqual(rows['head/kernel'].sparsity, 0.5)
    self.assertEqual(rows['head/kernel'].kept, 64)

  def test_roles_of_a_convolution(self):
    row = next(r for r in jsp.plan(jsp.nm(2, 4), PARAMS) if r.name == 'conv/kernel')
    self.assertEqual(row.roles, jsp.DimensionNumbers((0, 1, 2), (3,)))

  @parameterized.parameters('nm(2, 4)', "nm(2, 4) | fake_quantize('int4')", 'lsq(4)',
                            'low_rank(4)', 'clustered(16)', 'lora(4, base=nf4(group=8))',
                            'magnitude(0.9)', "magnitude(0.8) | fake_quantize('int8')",
                            'magnitude(0.5, pattern=channel())', 'rigl(0.75, distribution=erk)',
                            'magnitude(0.5, pattern=block(4, 4))',
                            "rules([('head/kernel', nm(1, 4) | lsq(2)), ('.*', identity())])")
  @pytest.mark.sampled(6)
  def test_bytes_are_those_of_the_packed_tree(self, text):
    transform = jsp.parse(text)
    packed = transform.pack(*transform.init(PARAMS))
    plan = jsp.plan(transform, PARAMS)
    self.assertEqual(sum(row.packed_bytes for row in plan), jsp.nbytes(packed))
    self.assertEqual(sum(row.size_bytes for row in plan), jsp.nbytes(PARAMS))

  def test_chains_are_spelled_in_the_order_of_the_data(self):
    row = next(r for r in jsp.plan(jsp.parse('lsq(4) | nm(2, 4)'), PARAMS) if r.name[:4] == 'head')
    self.assertEqual(row.scheme, 'lsq(4) | nm(2, 4)')
    row = next(r for r in jsp.plan(jsp.parse('nm(2, 4) | lsq(4)'), PARAMS) if r.name[:4] == 'head')
    self.assertEqual(row.scheme, 'nm(2, 4) | lsq(4)')

  def test_needs_no_arrays(self):
    abstract = jax.eval_shape(lambda: PARAMS)
    text = "magnitude(0.9) | fake_quantize('int8')"
    self.assertEqual(str(jsp.plan(jsp.parse(text), abstract)),
                     str(jsp.plan(jsp.parse(text), PARAMS)))


if __name__ == '__main__':
  absltest.main()
