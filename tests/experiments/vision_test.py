"""The vision experiment: data, models, and that what it hands over is what a launcher needs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from experiments import images
from experiments import packaged
from experiments import vision


def _images(name):
  try:
    return images.load(name)
  except packaged.MissingError as error:
    pytest.skip(str(error))


def _config(**changes):
  return dataclasses.replace(vision.get_config('smoke'), **changes)


@pytest.mark.parametrize(
  'name, side, sizes', [('digits', 8, (1437, 360)), ('mnist', 28, (4000, 1000))]
)
def test_split_is_stratified_and_disjoint(name, side, sizes):
  data = _images(name)
  assert (len(data.train_labels), len(data.test_labels)) == sizes and data.side == side
  counts = np.bincount(data.test_labels)
  assert len(counts) == 10 and np.ptp(counts) <= 2
  rows = [a.reshape(len(a), -1) for a in (data.train_images, data.test_images)]
  assert len(np.unique(np.concatenate(rows), axis=0)) == sum(sizes)
  assert all(a.min() == 0 and a.max() == 1 and a.dtype == np.float32 for a in rows)


def test_an_epoch_shows_every_image_once_and_steps_repeat():
  data = images.load('digits')
  batch = lambda step: images.batch(data, step, size=100, seed=3, shift=0)
  epoch = np.concatenate([batch(step)['images'] for step in range(14)]).reshape(1400, 64)
  assert len(np.unique(epoch, axis=0)) == 1400
  jax.tree.map(np.testing.assert_array_equal, batch(20), batch(20))
  assert (batch(0)['images'] != batch(14)['images']).any()


def test_an_image_moves_by_a_pixel_at_most():
  data = images.load('digits')
  still, moved = (images.batch(data, 5, size=50, seed=0, shift=n) for n in (0, 1))
  np.testing.assert_array_equal(still['labels'], moved['labels'])
  padded = np.pad(still['images'], ((0, 0), (1, 1), (1, 1)))
  places = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
  same = np.array([(p == moved['images']).all((1, 2)) for p in places])
  assert same.any(0).all() and same.any(1).all()


def test_config_refuses_what_it_does_not_know():
  with pytest.raises(ValueError, match=r"Sizes of vision are '', 'smoke', 'vit'.*; got 'vot'"):
    vision.get_config('vot')
  for changes, message in (
    ({'model': 'rnn'}, "model: found 'rnn', expected one of 'cnn', 'mlp', 'normalized_mlp', 'vit'"),
    ({'width': 18}, 'width: found 18, expected a multiple of 4'),
    ({'steps': -1}, 'steps: found -1'),
    ({'rate': 0.0}, 'rate: found 0.0'),
    ({'batch_size': 2000}, 'batch_size: found 2000'),
  ):
    with pytest.raises(ValueError, match=message):
      _config(**changes)


@pytest.mark.parametrize('model', ['cnn', 'mlp', 'vit'])
@pytest.mark.parametrize('data', ['digits', 'mnist'])
def test_every_compressed_layer_takes_every_kind_of_transform(model, data):
  _images(data)
  built = vision.build(_config(model=model, data=data, width=8))
  weights = jax.eval_shape(built.init)
  axes = jsp.axes_of(built.apply, weights, built.inputs)
  for spelled in ('nm(2, 4)', 'rigl(0.9)', 'lsq(bits=4)', 'low_rank(0.5)', 'clustered(16)'):
    transform = jsp.at(built.weights, jsp.parse(spelled))
    jax.eval_shape(lambda p, t=transform: t.init(p, axes=axes), weights)
  shapes = jax.tree.map(lambda x: x.shape, built.batch(0))
  assert shapes == jax.tree.map(lambda x: x.shape, built.batch(1000))
  assert jsp.flops(built.apply, weights, built.inputs).executed > 0


@pytest.mark.parametrize('model', ['cnn', 'mlp', pytest.param('vit', marks=pytest.mark.slow)])
def test_specs_split_weights_over_a_mesh_and_change_nothing(model):
  built = vision.build(_config(model=model, width=16))
  params = built.init()
  mesh = jax.make_mesh((2, 4), ('data', 'model'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  place = lambda spec: jax.sharding.NamedSharding(mesh, spec)
  placed = jax.device_put(params, jax.tree.map(place, built.specs(params)))
  split = [x for x in jax.tree.leaves(placed) if not x.sharding.is_fully_replicated]
  assert sum(x.size for x in split) > 0.7 * sum(x.size for x in jax.tree.leaves(params))
  forward = jax.jit(built.apply)
  x = jnp.asarray(images.load('digits').test_images[:8])
  np.testing.assert_allclose(forward(placed, x), forward(params, x), atol=1e-4)


def _train(built, spelled, steps):
  transform = jsp.at(built.weights, jsp.parse(spelled))
  axes = jsp.axes_of(built.apply, jax.eval_shape(built.init), built.inputs)
  ts = jsp.TrainState.create(transform, built.tx, built.init(), axes=axes)
  step = jsp.train_step(built.loss, built.tx, transform, has_aux=True)
  for index in range(steps):
    key = jax.random.fold_in(jax.random.key(0), index)
    ts, loss, aux = step(ts, built.batch(index), key)
  assert set(aux) == {'accuracy'}
  return transform.pack(ts.params, ts.state), float(loss)


def test_packed_weights_measure_like_dense_ones_and_training_helps():
  built = vision.build(_config(steps=40, width=8, rate=1e-2))
  before = built.evaluate(built.init())
  packed, loss = _train(built, 'nm(2, 4)', 40)
  found, dense = built.evaluate(packed), built.evaluate(jsp.densify(packed))
  assert found['accuracy'] > max(0.5, before['accuracy']) and loss < before['loss']
  np.testing.assert_allclose(found['loss'], dense['loss'], rtol=1e-4)
  assert jsp.nbytes(packed) < 0.7 * jsp.nbytes(jsp.densify(packed))


@pytest.mark.slow
@pytest.mark.parametrize('spelled', ['identity()', 'nm(2, 4)', 'rigl(0.9)', 'lsq(bits=4)'])
def test_the_smoke_run_learns(spelled):
  built = vision.build(vision.get_config('smoke'))
  packed, _ = _train(built, spelled, built.steps)
  assert built.evaluate(packed)['accuracy'] > 0.7
