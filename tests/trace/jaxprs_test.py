"""What differs between jax versions, and what is static."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.trace import jaxprs


class _Primitive:
  """A stand-in for jax's own class, whose `get_bind_params` has had two return types."""

  multiple_results = True

  def __init__(self, found):
    self.found = found

  def get_bind_params(self, params):
    del params
    return self.found

  def bind(self, *args, **params):
    return args, params


class JaxprsTest(parameterized.TestCase):

  def test_bind_understands_both_return_types(self):
    args, params = jaxprs.bind(_Primitive((('f',), {'a': 1})), {}, ['x'])
    self.assertEqual((args, params), (('f', 'x'), {'a': 1}))
    args, params = jaxprs.bind(_Primitive({'a': 1}), {}, ['x'])
    self.assertEqual((args, params), (('x',), {'a': 1}))

  @parameterized.parameters(
      (jax.nn.relu,), (jax.jit(jnp.sin),), (jax.checkpoint(jnp.sin),),
      (lambda x: jax.lax.scan(lambda c, y: (c + y, c), 0.0, x)[1],),
      (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),),
      (lambda x: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: c + 1, x),))
  def test_bind_of_higher_order_primitives(self, fn):
    x = jnp.arange(3.0)
    closed = jax.make_jaxpr(fn)(x)
    env = dict(zip(closed.jaxpr.invars, [x]))
    for eqn in closed.jaxpr.eqns:
      values = [jaxprs.read(env, atom) for atom in eqn.invars]
      with jaxprs.context(eqn):
        env.update(zip(eqn.outvars, jaxprs.bind(eqn.primitive, eqn.params, values)))
    np.testing.assert_allclose(jaxprs.read(env, closed.jaxpr.outvars[0]), fn(x))

  def test_scan_counts(self):
    fn = lambda a, b, c, x: jax.lax.scan(
        lambda s, y: ((s[0] + a * b, s[1] + c), y), (a, b), x)
    closed = jax.make_jaxpr(fn)(1.0, 2.0, 3.0, jnp.ones(4))
    eqn, = [e for e in closed.jaxpr.eqns if e.primitive.name == 'scan']
    constants, carried = jaxprs.scan_counts(eqn.params)
    self.assertEqual(carried, 2)
    self.assertEqual(constants + carried + 1, len(eqn.invars))

  def test_split_keeps_what_is_not_an_array(self):
    tree = ({'a': jnp.ones(2), 'flag': True}, None, 'mode', np.float32(1), jax.random.key(0), len)
    arrays, static = jaxprs.split(tree)
    self.assertLen(arrays, 3)
    self.assertEqual(hash(static), hash(jaxprs.split(tree)[1]))
    again = static.merge(arrays)
    self.assertIs(again[0]['flag'], True)
    self.assertEqual(again[1:3], (None, 'mode'))
    self.assertIs(again[-1], len)


if __name__ == '__main__':
  absltest.main()
