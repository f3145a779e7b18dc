"""Statistics against inputs captured by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx

from jaxsparse import trace
from tests.trace import stored


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def observe(fn, params, *args, observer=trace.gram):
  return trace.calibrate(fn, params, [args], observer)


def gram_of(rows):
  rows = np.asarray(rows, np.float64)
  return np.swapaxes(rows, -1, -2) @ rows


def close(got, wanted, rtol=1e-5):
  np.testing.assert_allclose(got, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())


def patches(x, window, strides, padding, dilation=(1, 1)):
  """The patches of `x` [n, h, w, c] as rows of (h, w, c), by loops."""
  x = np.pad(np.asarray(x, np.float64), ((0, 0), *padding, (0, 0)))
  span = [(k - 1) * d + 1 for k, d in zip(window, dilation)]
  rows = []
  for image in x:
    for i in range(0, image.shape[0] - span[0] + 1, strides[0]):
      for j in range(0, image.shape[1] - span[1] + 1, strides[1]):
        rows.append(image[i:i + span[0]:dilation[0], j:j + span[1]:dilation[1]])
  return np.stack(rows)


class GramTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('right', lambda p, x: x @ p['w'], (6, 4)),
      ('left', lambda p, x: p['w'] @ x.T, (4, 6)),
      ('transposed', lambda p, x: x @ p['w'].T, (4, 6)),
      ('custom derivative around an activation', lambda p, x: jax.nn.relu(x @ p['w']), (6, 4)),
      ('bfloat16 weight', lambda p, x: x @ p['w'].astype(jnp.bfloat16).astype(x.dtype), (6, 4)),
      ('jit and remat', lambda p, x: jax.jit(jax.checkpoint(lambda w: x @ w))(p['w']), (6, 4)),
      ('sliced output', lambda p, x: x @ p['w'][:, 1:], (6, 4)),
      ('vector', lambda p, x: x @ p['w'], (6,)))
  def test_one_matrix(self, fn, shape):
    x = normal(5, 6)
    close(observe(fn, {'w': normal(*shape, seed=1)}, x)['w'], gram_of(x))

  def test_several_uses_and_batches_add_up(self):
    fn = lambda p, x: (x @ p['w'], (2 * x) @ p['w'])
    xs = normal(3, 5, 6)
    stats = trace.calibrate(fn, {'w': normal(6, 4)}, list(xs), trace.gram)
    close(stats['w'], 5 * gram_of(xs.reshape(15, 6)))

  @parameterized.parameters(
      ('bijk,ijko->bo', (2, 3, 4, 5), (0, 1, 2)), ('bijk,kjio->bo', (4, 3, 2, 5), (2, 1, 0)),
      ('bijk,ojik->bo', (5, 3, 2, 4), (1, 0, 2)))
  def test_order_of_reduction_axes_is_the_weights(self, equation, shape, order):
    x = normal(5, 2, 3, 4)
    stats = observe(lambda p, x: jnp.einsum(equation, x, p['w']), {'w': normal(*shape)}, x)
    rows = x.transpose(0, *(i + 1 for i in order)).reshape(5, 24)
    close(stats['w'], gram_of(rows))

  def test_reshaped_weight(self):
    x = normal(5, 12)
    stats = observe(lambda p, x: x @ p['w'].reshape(12, 2), {'w': normal(3, 4, 2)}, x)
    close(stats['w'], gram_of(x))
    stats = observe(lambda p, x: jnp.einsum('bij,ijo->bo', x.reshape(5, 3, 4), p['w'].reshape(
        3, 4, 2)), {'w': normal(12, 2)}, x)
    close(stats['w'], gram_of(x))
    swapped = lambda p, x: x @ p['w'].transpose(1, 0, 2).reshape(12, 2)
    stats = observe(swapped, {'w': normal(3, 4, 2)}, x)
    # A merge against the natural order: rows are put back into it, or there is no statistic.
    rows = x.reshape(5, 4, 3).transpose(0, 2, 1).reshape(5, 12)
    close(stats['w'], gram_of(rows))

  def test_slices_of_the_reduction_have_no_statistic(self):
    fn = lambda p, x: x[:, :3] @ p['w'][:3] + x @ p['v']
    stats = observe(fn, {'w': normal(6, 4), 'v': normal(6, 4)}, normal(5, 6))
    self.assertEqual(set(stats), {'v'})

  def test_dense_general_over_two_axes(self):
    net = nn.DenseGeneral(5, axis=(-2, -1))
    x = normal(4, 3, 2, 6)
    params = net.init(jax.random.key(0), x)
    close(observe(net.apply, params, x)['params/kernel'], gram_of(x.reshape(12, 12)))

  def test_attention(self):
    net = nn.MultiHeadDotProductAttention(2, qkv_features=8)
    x = normal(3, 5, 6)
    params = net.init(jax.random.key(0), x)
    stats = observe(net.apply, params, x)
    for name in ('query', 'key', 'value'):
      close(stats[f'params/{name}/kernel'], gram_of(x.reshape(15, 6)))
    p = params['params']
    q, k, v = (jnp.einsum('bti,ihd->bthd', x, p[n]['kernel']) + p[n]['bias'][None, None]
               for n in ('query', 'key', 'value'))
    weights = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k) / 2.0)
    mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, v)
    close(stats['params/out/kernel'], gram_of(mixed.reshape(15, 8)), rtol=2e-5)

  @parameterized.named_parameters(
      ('same', 'HWIO', (1, 1), 'SAME', ((1, 1), (1, 1)), (1, 1)),
      ('valid', 'OIHW', (1, 1), 'VALID', ((0, 0), (0, 0)), (1, 1)),
      ('stride', 'HWIO', (2, 1), 'VALID', ((0, 0), (0, 0)), (1, 1)),
      ('padding', 'IHWO', (2, 2), ((2, 1), (0, 1)), ((2, 1), (0, 1)), (1, 1)),
      ('dilation', 'HWIO', (1, 1), 'VALID', ((0, 0), (0, 0)), (2, 1)))
  def test_convolution(self, layout, strides, padding, pads, dilation):
    x, shape = normal(2, 7, 6, 3), {'H': 3, 'W': 2, 'I': 3, 'O': 4}
    pads = ((1, 1), (0, 1)) if padding == 'SAME' else pads
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['w'], strides, padding, rhs_dilation=dilation,
        dimension_numbers=('NHWC', layout, 'NHWC'))
    stats = observe(fn, {'w': normal(*(shape[c] for c in layout))}, x)
    rows = patches(x, (3, 2), strides, pads, dilation)
    order = ['HWI'.index(c) + 1 for c in layout if c != 'O']
    close(stats['w'], gram_of(rows.transpose(0, *order).reshape(len(rows), -1)))

  def test_convolution_reproduces_the_output(self):
    # The rows times the kernel's matrix are the convolution, whatever the input's layout.
    x = normal(2, 3, 7, 6)
    w = normal(4, 3, 2, 3)
    fn = lambda p, x: jax.lax.conv_general_dilated(x, p['w'], (1, 2), 'SAME')
    out = fn({'w': w}, x)
    stats = observe(fn, {'w': w}, x)['w']
    matrix = np.asarray(w).reshape(4, -1).T
    close(matrix.T @ stats @ matrix, gram_of(out.transpose(0, 2, 3, 1).reshape(-1, 4)), rtol=1e-4)

  def test_grouped_convolution_has_one_matrix_a_group(self):
    x = normal(2, 5, 5, 6)
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['w'], (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=3)
    stats = observe(fn, {'w': normal(2, 2, 2, 9)}, x)['w']
    rows = patches(x, (2, 2), (1, 1), ((0, 0), (0, 0)))
    wanted = [gram_of(rows[..., 2 * g:2 * g + 2].reshape(len(rows), -1)) for g in range(3)]
    close(stats, np.stack(wanted))

  def test_experts(self):
    x, w = normal(3, 5, 6), normal(3, 6, 4)
    for fn in (lambda p, x: jax.vmap(jnp.matmul)(x, p['w']),
               lambda p, x: jnp.einsum('ebi,eio->boe', x, p['w'])):
      close(observe(fn, {'w': w}, x)['w'], gram_of(x))
    last = lambda p, x: jnp.einsum('ebi,ioe->boe', x, p['w'])
    close(observe(last, {'w': w.transpose(1, 2, 0)}, x)['w'], gram_of(x))
    shared = lambda p, x: jax.vmap(lambda w: x @ w)(p['w'])
    close(observe(shared, {'w': w}, x[0])['w'], np.stack([gram_of(x[0])] * 3))

  def test_vmapped_convolution(self):
    x, w = normal(3, 2, 5, 5, 4), normal(3, 2, 2, 4, 5)
    conv = lambda w, x: jax.lax.conv_general_dilated(
        x, w, (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    stats = observe(lambda p, x: jax.vmap(conv)(p['w'], x), {'w': w}, x)['w']
    rows = [patches(a, (2, 2), (1, 1), ((0, 0), (0, 0))) for a in x]
    close(stats, np.stack([gram_of(r.reshape(len(r), -1)) for r in rows]))

  def test_ragged_groups(self):
    x, sizes = normal(7, 6), jnp.array([2, 0, 4])
    fn = lambda p, x, sizes: jax.lax.ragged_dot(x, p['w'], sizes)
    stats = observe(fn, {'w': normal(3, 6, 4)}, x, sizes)['w']
    close(stats, np.stack([gram_of(x[:2]), np.zeros((6, 6)), gram_of(x[2:6])]))
    norms = observe(fn, {'w': normal(3, 6, 4)}, x, sizes, observer=trace.input_norm)['w']
    close(norms[2], np.linalg.norm(x[2:6], axis=0))

  def test_lookups_have_none_and_tied_tables_do(self):
    net = nn.Embed(7, 4)
    ids = jnp.array([[1, 2, 6]])
    params = net.init(jax.random.key(0), ids)
    tied = lambda p, ids: net.apply(p, net.apply(p, ids), method=net.attend)
    rows = params['params']['embedding'][ids[0]]
    close(observe(tied, params, ids)['params/embedding'], gram_of(rows))
    with self.assertLogs('absl', 'WARNING'):
      self.assertEmpty(observe(net.apply, params, ids))

  def test_layers_are_stacked_and_shared_steps_are_summed(self):
    w, x = 0.3 * normal(4, 6, 6), normal(5, 6)

    def layers(p, x):
      return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), c), x, p['w'])
    inputs = layers({'w': w}, x)[1]
    close(observe(lambda p, x: layers(p, x)[0], {'w': w}, x)['w'], gram_of(inputs))

    def backwards(p, x):
      return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), c), x, p['w'], reverse=True, unroll=2)
    inputs = backwards({'w': w}, x)[1]
    close(observe(lambda p, x: backwards(p, x)[0], {'w': w}, x)['w'], gram_of(inputs))

    def shared(p, x):
      return jax.lax.scan(lambda c, _: (jnp.tanh(c @ p['w']), c), x, None, length=4)
    inputs = shared({'w': w[0]}, x)[1]
    close(observe(lambda p, x: shared(p, x)[0], {'w': w[0]}, x)['w'],
          gram_of(inputs.reshape(20, 6)))

    def both(p, x):  # Layers, each applied three times.
      step = lambda w: lambda c, _: (jnp.tanh(c @ w), c)
      return jax.lax.scan(lambda c, w: jax.lax.scan(step(w), c, None, length=3), x, p['w'])
    inputs = both({'w': w}, x)[1]
    close(observe(lambda p, x: both(p, x)[0], {'w': w}, x)['w'],
          gram_of(inputs.reshape(4, 15, 6)))

  @parameterized.named_parameters(
      ('gram', trace.gram), ('norm', trace.input_norm), ('max', trace.input_max),
      ('mean', trace.input_mean), ('range', trace.range_))
  def test_layers_picked_by_indices_are_like_those_of_a_scan(self, observer):
    params, x = {'w': normal(2, 3, 4, 4)}, normal(5, 4, seed=1)
    layer = lambda x, w: (jnp.tanh(x @ w), None)
    inner = lambda x, w: (jax.lax.scan(layer, x, w)[0], None)
    scanned = observe(lambda p, x: jax.lax.scan(inner, x, p['w'])[0], params, x, observer=observer)

    def picked(p, x):
      for half in p['w'][0], p['w'][-1]:
        for w in half:
          x = jnp.tanh(x @ w)
      return x

    found = observe(picked, params, x, observer=observer)
    if observer is trace.range_:   # of one index it is not told which
      scanned = jax.tree.map(lambda r, all: jnp.broadcast_to(all(r), r.shape), scanned,
                             {'w': trace.Range(jnp.min, jnp.max)})
    jax.tree.map(close, found, scanned)

  def test_convolutions_picked_by_indices(self):
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    params, x = {'w': normal(2, 3, 3, 4, 4)}, normal(1, 5, 5, 4, seed=1)
    scan = lambda p, x: jax.lax.scan(lambda x, w: (conv(x, w), None), x, p['w'])[0]
    unrolled = lambda p, x: conv(conv(x, p['w'][0]), p['w'][1])
    close(observe(unrolled, params, x)['w'], observe(scan, params, x)['w'])

  def test_rnn(self):
    net = nn.RNN(nn.SimpleCell(4))
    x = normal(2, 6, 3)
    params = net.init(jax.random.key(0), x)
    stats = observe(net.apply, params, x)
    close(stats['params/cell/i/kernel'], gram_of(x.reshape(12, 3)))
    h = np.asarray(net.apply(params, x))
    before = np.concatenate([np.zeros((2, 1, 4)), h[:, :-1]], 1)
    close(stats['params/cell/h/kernel'], gram_of(before.reshape(12, 4)))

  def test_nnx_stack(self):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def create(rngs):
      return nnx.Linear(6, 6, rngs=rngs)

    graphdef, params = nnx.split(create(nnx.Rngs(0)))

    def fn(params, x):
      forward = nnx.scan(lambda x, layer: (jnp.tanh(layer(x)), x), in_axes=(nnx.Carry, 0),
                         out_axes=(nnx.Carry, 0))
      return forward(x, nnx.merge(graphdef, params))
    x = normal(5, 6)
    close(observe(fn, params, x)['kernel'], gram_of(fn(params, x)[1]))

  def test_branches_and_loops(self):
    params = {'w': normal(6, 6), 'v': normal(6, 6)}
    x = normal(5, 6)
    choose = lambda p, x, flag: jax.lax.cond(flag, lambda: x @ p['w'], lambda: x @ p['v'])
    stats = trace.calibrate(choose, params, [(x, jnp.array(True)), (2 * x, jnp.array(True))],
                            trace.gram)
    close(stats['w'], 5 * gram_of(x))
    self.assertNotIn('v', stats)
    some = lambda p, x: jax.lax.fori_loop(0, 3, lambda i, y: jax.lax.cond(
        i > 0, lambda: 0 * y + x @ p['w'], lambda: y), x)
    close(observe(some, params, x)['w'], 2 * gram_of(x))
    condition = lambda p, x: jax.lax.while_loop(
        lambda c: ((c[0] @ p['w']).sum() < jnp.inf) & (c[1] < 2),
        lambda c: (c[0], c[1] + 1), (x, 0))
    close(observe(condition, params, x)['w'], 3 * gram_of(x))

  def test_packed_weights_give_the_same_statistics(self):
    w, x = normal(8, 4), normal(5, 8)
    for make in stored.MAKERS.values():
      packed = {'w': make(w)}
      fn = lambda p, x: jnp.tanh(x @ p['w']) @ p['v']
      stats = observe(fn, packed | {'v': normal(4, 4)}, x)
      close(stats['w'], gram_of(x))
      close(stats['v'], gram_of(jnp.tanh(x @ packed['w'].todense())))


class OtherObserversTest(parameterized.TestCase):

  def test_input_norm(self):
    fn, x = lambda p, x: p['w'] @ x.T, normal(4, 5, 6)
    stats = trace.calibrate(fn, {'w': normal(3, 6)}, list(x), trace.input_norm)
    close(stats['w'], np.linalg.norm(np.asarray(x).reshape(20, 6), axis=0))

  def test_range(self):
    x = normal(4, 5, 6)
    params = {'w': normal(6, 4)}
    stats = trace.calibrate(lambda p, x: x @ p['w'], params, list(x), trace.range_)
    self.assertEqual((float(stats['w'].low), float(stats['w'].high)),
                     (float(x.min()), float(x.max())))

  def test_range_needs_no_identity(self):
    # All inputs above zero: an unseen step must not bring in a zero.
    x = 5 + jnp.abs(normal(5, 6))
    params = {'w': normal(6, 6), 'e': normal(3, 6, 6)}

    def fn(p, x):
      step = lambda c, i: (c, jax.lax.cond(i == 1, lambda: x @ p['w'], lambda: x))
      return jax.lax.scan(step, 0, jnp.arange(3)), jax.vmap(lambda w: x @ w)(p['e'])
    stats = observe(fn, params, x, observer=trace.range_)
    self.assertEqual(float(stats['w'].low), float(x.min()))
    np.testing.assert_array_equal(stats['e'].low, np.full(3, x.min()))

  def test_range_of_layers_and_convolutions(self):
    x = 1 + jnp.abs(normal(2, 5, 5, 3))
    conv = lambda p, x: jax.lax.conv_general_dilated(
        x, p['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    self.assertEqual(float(observe(conv, {'w': normal(3, 3, 3, 2)}, x, observer=trace.range_)[
        'w'].low), float(x.min()))
    layers = lambda p, x: jax.lax.scan(lambda c, w: (c + 1 + 0 * (c @ w), None), x, p['w'])[0]
    stats = observe(layers, {'w': normal(3, 6, 6)}, normal(2, 6), observer=trace.range_)
    np.testing.assert_allclose(stats['w'].low, normal(2, 6).min() + np.arange(3), rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
