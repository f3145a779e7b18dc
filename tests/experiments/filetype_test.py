"""The filetype experiment: the pretrained model, its files, and its figures."""

import collections
import dataclasses
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from experiments import filetype
from experiments import labelled_files
from experiments import magika_cnn
from experiments import packaged


@pytest.fixture(scope='module')
def params():
  try:
    return magika_cnn.load()
  except packaged.MissingError as error:
    pytest.skip(str(error))


def _features(count):
  samples = labelled_files.load(1).held_out[:count]
  return np.stack([magika_cnn.read(sample.path) for sample in samples])


def test_the_port_agrees_with_the_onnx_runtime(params):
  if importlib.util.find_spec('onnxruntime') is None:
    pytest.skip('onnxruntime is not installed; run: pip install onnxruntime')
  import onnxruntime

  path = str(magika_cnn.path())
  session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
  ids = _features(16)
  theirs = session.run(None, {'bytes': ids})[0]
  ours = np.asarray(jax.nn.softmax(jax.jit(magika_cnn.apply)(params, ids)))
  np.testing.assert_allclose(ours, theirs, atol=1e-3)
  np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))


def test_the_tree_is_the_model(params):
  assert not {'torch', 'tensorflow', 'magika'} & set(sys.modules)
  assert sum(x.size for x in jax.tree.leaves(params)) == 784_214
  shapes = {name: x['kernel'].shape for name, x in params.items() if 'kernel' in x}
  assert shapes == {'conv': (5, 256, 512), 'head': (512, 214)}
  axes = jsp.axes_of(magika_cnn.apply, params, np.zeros((1, magika_cnn.LENGTH), np.int32))
  assert axes['conv/kernel'] == jsp.DimensionNumbers((0, 1), (2,))
  ids = jax.ShapeDtypeStruct((3, magika_cnn.LENGTH), jnp.int32)
  flops = jsp.flops(magika_cnn.apply, params, ids)
  assert flops.executed == 3 * 2 * (508 * 5 * 256 * 512 + 512 * 214)
  assert len(magika_cnn.labels()) == 214


@pytest.mark.parametrize('size', [0, 1, 1023, 1024, 4096, 5000, 9000])
def test_features_are_the_stripped_ends_of_a_file(size, tmp_path):
  data = (b' \n' + bytes(range(65, 91)) * 400)[: max(size - 2, 0)] + b'\t '[: min(size, 2)]
  path = tmp_path / 'file'
  path.write_bytes(data)
  head, tail = data[:4096].lstrip(), data[-4096:].rstrip()
  first = [head[i] if i < len(head) else 256 for i in range(1024)]
  last = [tail[len(tail) - 1024 + i] if len(tail) - 1024 + i >= 0 else 256 for i in range(1024)]
  found = magika_cnn.read(path)
  assert found.tolist() == first + last and found.dtype == np.int32


def test_files_are_split_by_content_and_listed():
  split = labelled_files.load(5)
  sides = [{s.sha256 for s in side} for side in split]
  assert not sides[0] & sides[1] and all(sides)
  for side in split:
    counts = collections.Counter(s.label for s in side)
    assert max(counts.values()) == 5 and len(counts) >= 15
    assert len({s.sha256 for s in side}) == len(side)
  sample = split.held_out[0]
  assert labelled_files.manifest(split.held_out)[0] == f'{sample.sha256}  {sample.name}'
  assert packaged.digest(sample.path) == sample.sha256
  smaller = labelled_files.load(2).held_out
  assert set(smaller) < set(split.held_out)
  assert labelled_files.digest(smaller) != labelled_files.digest(split.held_out)


def test_figures_of_dense_and_of_packed_weights(params):
  built = filetype.build(dataclasses.replace(filetype.get_config('smoke'), per_class=1))
  dense = built.evaluate(params)
  assert dense['accuracy'] == dense['dense_accuracy'] > 0.75
  assert dense['agreement'] == 1 and dense['low'] == dense['high'] == 0
  assert len(built.facts['manifest']) == built.facts['files'] >= 15
  transform = jsp.at(built.weights, jsp.parse("quantize('int8')"))
  packed = transform.pack(*transform.init(params))
  found = built.evaluate(packed)
  assert found['agreement'] > 0.9 and jsp.nbytes(packed) < 0.3 * jsp.nbytes(params)


@pytest.mark.slow
def test_the_teacher_has_nothing_to_teach_itself(params):
  built = filetype.build(dataclasses.replace(filetype.get_config('smoke'), batch_size=4))
  batch = built.batch(0)
  np.testing.assert_array_equal(batch, built.batch(0))
  assert batch.shape == built.batch(10_000).shape == (4, magika_cnn.LENGTH)
  (loss, aux), grads = jax.value_and_grad(built.loss, has_aux=True)(params, batch, None)
  assert abs(float(loss)) < 1e-6 and float(aux['agreement']) == 1
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-4
  assert jax.eval_shape(built.init) == jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  )


def test_config_refuses_what_it_does_not_know(params):
  with pytest.raises(ValueError, match="Sizes of filetype are '', 'smoke', 'recover'; got 'x'"):
    filetype.get_config('x')
  config = filetype.get_config('smoke')
  with pytest.raises(ValueError, match='per_class: found 0'):
    dataclasses.replace(config, per_class=0)
  with pytest.raises(ValueError, match='batch_size: found 1024, expected at most the'):
    filetype.build(dataclasses.replace(config, batch_size=1024))


@pytest.mark.slow
def test_distillation_recovers_some_of_what_pruning_cost(params):
  built = filetype.build(dataclasses.replace(filetype.get_config('smoke'), steps=12))
  transform = jsp.at(built.weights, jsp.parse('magnitude(0.9)'))
  ts = jsp.TrainState.create(transform, built.tx, built.init())
  before = built.evaluate(transform.pack(ts.params, ts.state))
  step = jsp.train_step(built.loss, built.tx, transform, has_aux=True)
  for index in range(built.steps):
    ts, _, _ = step(ts, built.batch(index), jax.random.key(index))
  after = built.evaluate(transform.pack(ts.params, ts.state))
  assert after['agreement'] > before['agreement'] + 0.1
