"""On a mesh as `jax.make_mesh` makes it, everything gives what it gives on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp
from jaxsparse.numerics import explicit_axes

_SPECS = {'up': P('x', 'y'), 'query/kernel': P(None, 'x', None), 'down': P(None, 'y')}
_TRANSFORMS = {
    'magnitude': lambda: jsp.magnitude(0.5),
    'nm and int8': lambda: jsp.chain(jsp.nm(2, 4), jsp.quantize('int8')),
    'packed': lambda: jsp.packed_masks(jsp.rigl(0.5, every=1, end=9)),
    'lora': lambda: jsp.lora(2, base=jsp.quantize('int4', group=8))}


def _mesh():
  return jax.make_mesh((2, 2), ('x', 'y'), devices=jax.devices()[:4])


def _weights():
  draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  return {'up': draw(0, 16, 32), 'query/kernel': draw(1, 32, 2, 8), 'down': draw(2, 16, 8)}


def _place(mesh, tree):
  return {k: jax.device_put(w, NamedSharding(mesh, _SPECS[k])) for k, w in tree.items()}


def _model(params, x, where=None):
  product = lambda a, b: jnp.einsum('bi,io->bo', a, b, out_sharding=where)
  queries = jnp.einsum('bi,ihd->bhd', product(x, params['up']), params['query/kernel'],
                       out_sharding=where and P(*where, None, None))
  return product(jnp.reshape(queries, (-1, 16), out_sharding=where), params['down'])


class ExplicitAxesTest(parameterized.TestCase):

  def assert_same(self, found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
      np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), 1e-4, 1e-4)

  def assert_lies_like(self, tree, weights):
    places = {w.shape: w.sharding for w in weights.values()}
    for x in jax.tree.leaves(tree):
      if x.shape in places:
        place = places[x.shape]
        self.assertEqual(x.sharding.mesh, place.mesh)
        self.assertTrue(x.sharding.is_equivalent_to(place, x.ndim), f'{x.sharding} {place}')

  @parameterized.named_parameters((k, k) for k in _TRANSFORMS)
  def test_transform(self, name):
    mesh, transform, weights = _mesh(), _TRANSFORMS[name](), _weights()
    placed = _place(mesh, weights)
    wanted = transform.init(weights)
    for init in (transform.init, jax.jit(transform.init)):
      latents, state = init(placed)
      self.assert_same((latents, state), wanted)
      self.assert_lies_like((latents, state), placed)
    apply = jax.jit(lambda *given: jsp.densify(transform.apply(*given)))
    self.assert_lies_like(apply(latents, state), placed)
    more = {'refresh': True, 'grads': weights}
    new = transform.update(latents, state, refresh=True, grads=placed)
    self.assert_same(new, transform.update(*wanted, **more))
    self.assert_lies_like(new, placed)
    # Reads no value of the weights, so that nothing tells jit of the mesh's devices.
    kept = jax.jit(lambda *given: transform.update(*given, refresh=False))(latents, state)
    self.assert_lies_like(kept, placed)
    packed, there = transform.pack(*wanted), transform.pack(latents, state)
    x = jnp.ones((4, 16))
    with jax.set_mesh(mesh):
      model = jax.jit(jsp.dispatch(lambda params, x: _model(params, x, P('x'))))
      y = model(there, jax.device_put(x, P('x')))
    self.assert_same(y, jsp.dispatch(_model)(packed, x))
    self.assertEqual(jax.typeof(y).sharding.spec, P('x', None))

  @parameterized.named_parameters(
      ('8 bits', lambda: jsp.quantized_state(optax.adam(0.1), block=16)),
      ('4 bits', lambda: jsp.quantized_state(optax.adam(0.1), bits=4, block=16)),
      ('wrap', lambda: jsp.wrap(optax.chain(jsp.masked_adaptive_clip(0.1), optax.adam(0.1)),
                                jsp.rigl(0.5, every=1, end=9))),
      ('low rank', lambda: jsp.error_feedback(jsp.compressors.power_sgd(2))))
  def test_optimizer(self, make):
    tx, weights = make(), _weights()
    placed = _place(_mesh(), weights)
    wanted = tx.update(weights, tx.init(weights), weights)
    state = tx.init(placed)
    for update in (tx.update, jax.jit(tx.update)):
      found = update(placed, state, placed)
      self.assert_same(found, wanted)
      self.assert_lies_like(found, placed)

  def test_statistics_and_calibrated_weights(self):
    mesh, weights, x = _mesh(), _weights(), jnp.arange(128.0).reshape(8, 16) % 7
    model = lambda params, x: _model(params, x, P('x'))
    wanted = jsp.calibrate(_model, weights, [x], jsp.gram)
    with jax.set_mesh(mesh):
      placed = _place(mesh, weights)
      stats = jsp.calibrate(model, placed, [jax.device_put(x, P('x'))], jsp.gram)
      for name, statistic in wanted.items():
        np.testing.assert_allclose(stats[name], statistic, rtol=1e-4)
      transform = jsp.awq('int4', group=8)
      self.assert_same(jsp.densify(transform.pack(*transform.init(placed, stats=stats))),
                       jsp.densify(transform.pack(*transform.init(weights, stats=wanted))))

  def test_hooks_take_what_they_close_over(self):
    weights, x = _weights(), jnp.arange(128.0).reshape(8, 16) % 7

    def both(params, x, where=None):
      model = lambda params, x: _model(params, x, where)
      step = jax.jit(jax.grad(
          lambda p, n: jnp.square(jsp.quantized_products(model)(p, n, x)).mean()))
      ranges = jsp.calibrate(model, params, [x], jsp.range)
      rounded = jsp.quantize_activations(model, ranges=ranges)
      return step(params, jnp.int32(3)), rounded(params, x), jax.jit(rounded)(params, x)

    wanted = both(weights, x)
    with jax.set_mesh(_mesh()):
      self.assert_same(both(_place(_mesh(), weights), jax.device_put(x, P('x')), P('x')), wanted)

  def test_a_step_that_moves_packed_masks(self):
    transform, tx = jsp.packed_masks(jsp.rigl(0.5, every=1, end=9)), optax.adam(0.1)

    def run(params):
      state = jsp.TrainState.create(transform, tx, params)._replace(count=1)
      return jsp.train_step(lambda p: jnp.square(p['w'] - 1).sum(), tx, transform)(state)[0]

    weights = {'w': _weights()['down']}   # its bits are one column, which two devices cannot share
    with jax.set_mesh(_mesh()):
      self.assert_same(run(jax.device_put(weights, P(None, 'y')))[:3], run(weights)[:3])

  def test_grouped_matmul(self):
    mesh, sizes = _mesh(), jnp.array([3, 5, 0, 8])
    x, w = jnp.ones((16, 8)), jax.random.normal(jax.random.key(0), (4, 8, 16))
    loss = lambda x, w: jnp.square(jsp.grouped_matmul(x, w, sizes)).sum()
    wanted = jax.grad(loss, (0, 1))(x, w)
    with jax.set_mesh(mesh):
      placed = jax.device_put(x, P('x')), jax.device_put(w, P(None, None, 'y'))
      self.assertEqual(jax.typeof(jsp.grouped_matmul(*placed, sizes)).sharding.spec, P('x', 'y'))
      self.assert_same(jax.jit(jax.grad(loss, (0, 1)))(*placed), wanted)

  @parameterized.named_parameters(
      ('bitmask', lambda: jsp.magnitude(0.5), P(None, None, 'y')),
      ('centroids', lambda: jsp.clustered(4), P(None, 'x')),
      ('groups', lambda: jsp.quantize('int4', group=8), P(None, 'x')))
  def test_stacks_are_scanned_and_sliced(self, make, spec):
    transform, stack, x = make(), {'w': _weights()['up'].reshape(2, 16, 16)}, jnp.ones((4, 16))

    def both(packed, x, where=None):
      model = lambda p, x: jnp.einsum('bi,io->bo', x, p['w'], out_sharding=where)
      layers = lambda p, x: jax.lax.scan(lambda x, w: (model({'w': w}, x), None), x, p['w'])[0]
      one = jax.tree.map(lambda a: a[1], packed)
      return jsp.dispatch(layers)(packed, x), jsp.dispatch(model)(one, x)

    wanted = both(transform.pack(*transform.init(stack)), x)
    with jax.set_mesh(_mesh()):
      packed = transform.pack(*transform.init(jax.device_put(stack, spec)))
      self.assert_same(jax.jit(lambda p, x: both(p, x, P('x')))(packed, jax.device_put(x, P('x'))),
                       wanted)

  def test_packed_blocks_say_what_they_expect(self):
    transform = jsp.packed_blocks(jsp.static(0.5, pattern=jsp.balanced_blocks(8, 8)))
    with self.assertRaisesRegex(ValueError, "^down: .*P\\(None, 'y'\\).*expects .*Auto"):
      transform.init(_place(_mesh(), _weights()))

  def test_eager_arrays_stay_where_they_are(self):
    placed = _place(_mesh(), _weights())
    seen = []

    def look(w, other):
      seen.append((w, other))
      return w

    run = explicit_axes.left_to_xla(lambda out, *given: [P()])(look)
    self.assertIs(run(placed['up'], 3), placed['up'])
    (inside, other), = seen
    self.assertEqual(other, 3)
    self.assertEqual(inside.sharding.mesh.axis_types, (jax.sharding.AxisType.Auto,) * 2)
    pointers = lambda w: [s.data.unsafe_buffer_pointer() for s in w.addressable_shards]
    self.assertEqual(pointers(inside), pointers(placed['up']))

  def test_without_explicit_axes_nothing_happens(self):
    fn = lambda w: w.reshape(-1) * 2
    lifted = explicit_axes.left_to_xla(lambda out, w: 1 / 0)(fn)
    w = jnp.ones((4, 4))
    self.assertEqual(jax.jit(lifted).lower(w).as_text(), jax.jit(fn).lower(w).as_text())


if __name__ == '__main__':
  absltest.main()
