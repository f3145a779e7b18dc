"""The language model: data split by content, a causal model, the same figures on any mesh."""

import dataclasses
import doctest
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

import jaxsparse as jsp
from experiments import corpus
from experiments import decoder
from experiments import language

_SIZES = ('', 'smoke', 'bench', '110m', '1b')
_TINY = decoder.Decoder(width=16, layers=2, heads=2, mlp=32)


def tiny(**fields):
  """A configuration that compiles in seconds."""
  small = dict(steps=4, batch_size=8, width=32, layers=2, mlp=32, sequence=16)
  small |= dict(corpus_bytes=100_000, evaluation_windows=16)
  return dataclasses.replace(language.get_config('smoke'), **{**small, **fields})


class CorpusTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def write(self, count):
    for i in range(count):
      path = self.folder / f'package{i % 3}' / f'file{i}.py'
      path.parent.mkdir(exist_ok=True)
      path.write_text(f'x = {i}\n')

  def test_no_content_is_on_both_sides_under_whatever_name(self):
    self.write(60)
    for i in range(60):
      (self.folder / f'copy{i}.py').write_text(f'x = {i}\n')
    found = corpus.load(10_000, str(self.folder))
    train, held_out = (bytes(side).split(b'\0')[:-1] for side in (found.train, found.held_out))
    self.assertCountEqual(train + held_out, [f'x = {i}\n'.encode() for i in range(60)])
    self.assertNotEmpty(held_out)
    self.assertEqual(found.facts['train_files'] + found.facts['held_out_files'], 60)
    self.assertEqual(found.facts['train_bytes'], len(found.train))

  def test_only_the_librarys_own_files_are_read(self):
    self.write(60)
    before = corpus.load(10_000, str(self.folder))
    for name in ('site-packages', 'test', '__pycache__', 'config-3-machine'):
      (self.folder / name).mkdir()
      (self.folder / name / 'other.py').write_text('other = 1\n')
    (self.folder / '_sysconfigdata_machine.py').write_text('other = 2\n')
    (self.folder / 'link.py').symlink_to('/etc/passwd')
    (self.folder / 'notes.txt').write_text('other = 3\n')
    after = corpus.load(10_001, str(self.folder))
    self.assertEqual(before.facts['corpus_digest'], after.facts['corpus_digest'])

  def test_a_cap_takes_whole_files_in_the_order_of_their_hashes(self):
    self.write(60)
    part, whole = corpus.load(100, str(self.folder)), corpus.load(10_000, str(self.folder))
    self.assertBetween(len(part.train), 100, 130)
    np.testing.assert_array_equal(part.train, whole.train[: len(part.train)])
    self.assertNotEqual(part.facts['corpus_digest'], whole.facts['corpus_digest'])

  def test_too_little_text_is_an_error(self):
    with self.assertRaisesRegex(ValueError, 'holds 0 different .py files'):
      corpus.load(100, str(self.folder))
    with self.assertRaisesRegex(ValueError, 'no window of 9; raise corpus_bytes'):
      corpus.windows(np.zeros(8, np.uint8), length=9, count=1, seed=0, step=0)

  def test_windows_are_pieces_of_the_text_and_depend_on_seed_and_step(self):
    text = np.arange(200, dtype=np.uint8)
    draw = lambda seed, step: corpus.windows(text, length=5, count=50, seed=seed, step=step)
    self.assertTrue((np.diff(draw(0, 0).astype(int), axis=1) == 1).all())
    self.assertFalse((draw(0, 0) == draw(0, 1)).all())
    self.assertFalse((draw(0, 0) == draw(1, 0)).all())
    ends = corpus.windows(text[:5], length=5, count=3, seed=0, step=0)
    np.testing.assert_array_equal(ends, np.tile(text[:5], (3, 1)))


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(steps=-1), 'steps'),
    (dict(seed=2**31), 'seed'),
    (dict(batch_size=0), 'batch_size'),
    (dict(width=20, heads=8), 'multiple of 2 . heads = 16'),
    (dict(width=18, heads=1), 'width must be a multiple of 4'),
    (dict(mlp=30), 'mlp must be a multiple of 4'),
    (dict(vocabulary=100), 'vocabulary must be at least 256'),
    (dict(dtype='int8'), "dtype must be one of .*'int8'"),
    (dict(rate=0.0), 'rate must be positive'),
    (dict(rate=float('nan')), 'rate must be positive'),
    (dict(weight_decay=-1.0), 'weight_decay'),
    (dict(corpus_bytes=0), 'corpus_bytes'),
  )
  def test_what_cannot_be_built_is_refused(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      language.Config(**fields)

  def test_an_unknown_size_lists_the_known(self):
    with self.assertRaisesRegex(ValueError, "'smoke', 'bench', '110m', '1b'.*'2b'"):
      language.get_config('2b')

  @parameterized.parameters(*_SIZES)
  def test_every_size_takes_two_in_four_and_its_specs(self, size):
    config = dataclasses.replace(language.get_config(size), corpus_bytes=100_000)
    task = language.build(config)
    params = jax.eval_shape(task.init)
    jax.eval_shape(jsp.at(task.weights, jsp.nm(2, 4)).init, params)
    is_spec = lambda x: isinstance(x, PartitionSpec)
    specs = task.specs(params)
    self.assertEqual(jax.tree.structure(params), jax.tree.structure(specs, is_leaf=is_spec))
    if size == '1b':
      self.assertEqual(task.facts['parameters'], 1_055_991_808)
      for leaf, spec in zip(jax.tree.leaves(params), jax.tree.leaves(specs, is_leaf=is_spec)):
        for n, axis in zip(leaf.shape, spec):
          self.assertEqual(n % 16 if axis else 0, 0)


def oracle(params, tokens):
  """The decoder of `_TINY`, one position and one head at a time, in float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  norm = lambda x, scale: x / np.sqrt((x * x).mean() + 1e-6) * scale
  half = _TINY.width // _TINY.heads // 2
  rates = 10_000.0 ** -(np.arange(half) / half)

  def turn(x, position):
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * position * rates)
    return np.concatenate([z.real, z.imag])

  stream = [p['embedding'][t] for t in tokens]
  for layer in range(_TINY.layers):
    b = jax.tree.map(lambda x, layer=layer: x[layer], p['blocks'])
    seen = [norm(x, b['attention_norm']['scale']) for x in stream]
    for i in range(len(stream)):
      for h in range(_TINY.heads):
        q, *keys = (
          turn(y @ b[kind]['kernel'][:, h], at)
          for y, kind, at in [
            (seen[i], 'query', i),
            *((seen[j], 'key', j) for j in range(i + 1)),
          ]
        )
        weights = np.exp([q @ k / np.sqrt(2 * half) for k in keys])
        values = [y @ b['value']['kernel'][:, h] for y in seen[: i + 1]]
        mixed = sum(w * v for w, v in zip(weights / weights.sum(), values))
        stream[i] = stream[i] + mixed @ b['out']['kernel'][h]
    for i, x in enumerate(stream):
      y = norm(x, b['mlp_norm']['scale'])
      gate = y @ b['gate']['kernel']
      hidden = gate / (1 + np.exp(-gate)) * (y @ b['up']['kernel'])
      stream[i] = x + hidden @ b['down']['kernel']
  return np.stack([norm(x, p['norm']['scale']) @ p['head']['kernel'] for x in stream])


def logits_of(model, params, tokens):
  """The model compiled whole: eager, each of its operations would be."""
  return jax.jit(lambda p, t: decoder.apply(model, p, t))(params, tokens)


class DecoderTest(parameterized.TestCase):
  def test_it_is_the_model_of_the_papers(self):
    params = decoder.init(_TINY, 0)
    tokens = np.array([[7, 200, 31, 7, 0]], np.uint8)
    logits = logits_of(_TINY, params, tokens)
    np.testing.assert_allclose(logits[0], oracle(params, tokens[0]), rtol=1e-4, atol=1e-4)

  @parameterized.parameters(False, True)
  def test_no_logit_sees_a_later_byte(self, remat):
    model = _TINY._replace(remat=remat)
    params = decoder.init(model, 0)
    tokens = np.arange(12, dtype=np.uint8)[None]
    later = np.where(np.arange(12) >= 8, 99, tokens).astype(np.uint8)
    a, b = logits_of(model, params, np.concatenate([tokens, later]))
    np.testing.assert_array_equal(a[:8], b[:8])
    self.assertFalse(np.array_equal(a[8], b[8]))

  def test_without_a_mesh_nothing_is_placed(self):
    params = jax.eval_shape(lambda: decoder.init(_TINY, 0))
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.uint8)
    program = jax.make_jaxpr(lambda p, t: decoder.apply(_TINY, p, t))(params, tokens)
    self.assertNotIn('sharding_constraint', str(program))

  def test_half_precision_computes_in_half_and_answers_in_single(self):
    model = _TINY._replace(dtype='bfloat16')
    params, tokens = decoder.init(_TINY, 0), np.zeros((1, 4), np.uint8)
    logits, exact = logits_of(model, params, tokens), logits_of(_TINY, params, tokens)
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_allclose(logits, exact, rtol=0.1, atol=0.1)


class TaskTest(absltest.TestCase):
  def train(self, task, transform, mesh=None, steps=2):
    """Runs some steps; returns the train state and the losses."""
    places = None
    if mesh is not None:
      places = jsp.train_shardings(transform, task.tx, task.init, task.specs(None), mesh)
    ts = jsp.TrainState.create(transform, task.tx, task.init, shardings=places)
    step = jsp.train_step(task.loss, task.tx, transform, has_aux=True, shardings=places)
    losses, metrics = [], None
    for i in range(steps):
      batch = task.batch(i)
      if mesh is not None:
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec('data')))
      ts, loss, metrics = step(ts, batch, jax.random.key(i))
      losses.append(float(loss))
    return ts, losses, metrics

  def test_it_learns_and_evaluates_arrays_and_formats_alike(self):
    task = language.build(tiny(steps=30))
    transform = jsp.at(task.weights, jsp.parse("nm(2, 4) | fake_quantize('int8')"))
    before = task.evaluate(task.init())
    ts, losses, metrics = self.train(task, transform, steps=30)
    self.assertLess(losses[-1], losses[0] - 1)
    self.assertAlmostEqual(float(metrics['bits_per_byte']) * np.log(2), losses[-1], places=4)
    effective = task.evaluate(transform.apply(ts.params, ts.state))
    packed = task.evaluate(transform.pack(ts.params, ts.state))
    self.assertEqual(set(packed), {'accuracy', 'bits_per_byte'})
    self.assertLess(effective['bits_per_byte'], before['bits_per_byte'] - 1)
    self.assertAlmostEqual(packed['bits_per_byte'], effective['bits_per_byte'], places=4)
    self.assertAlmostEqual(packed['accuracy'], effective['accuracy'], delta=0.01)

  def test_a_batch_is_a_function_of_seed_and_step(self):
    first, again = language.build(tiny()), language.build(tiny())
    np.testing.assert_array_equal(first.batch(3), again.batch(3))
    self.assertEqual((first.batch(3).shape, first.batch(3).dtype), ((8, 17), np.uint8))
    self.assertFalse(np.array_equal(first.batch(3), language.build(tiny(seed=1)).batch(3)))
    self.assertEqual(first.facts['corpus_digest'], again.facts['corpus_digest'])

  @pytest.mark.slow
  def test_a_mesh_changes_where_and_not_what(self):
    task = language.build(tiny())
    transform = jsp.at(task.weights, jsp.parse('rigl(0.5)'))
    alone, losses, _ = self.train(task, transform)
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=auto)
    ts, sharded_losses, _ = self.train(task, transform, mesh)
    np.testing.assert_allclose(sharded_losses, losses, rtol=1e-6)
    for name, mask in jsp.masks(ts.state).items():
      self.assertEqual(mask.addressable_shards[0].data.size * 8, mask.size)
      np.testing.assert_array_equal(mask, jsp.masks(alone.state)[name])
    on_mesh = task.evaluate(transform.apply(ts.params, ts.state))
    here = task.evaluate(transform.apply(alone.params, alone.state))
    self.assertAlmostEqual(on_mesh['bits_per_byte'], here['bits_per_byte'], places=4)


class ExamplesTest(parameterized.TestCase):
  @parameterized.parameters(corpus, decoder, language)
  def test_docstrings_are_true(self, module):
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    self.assertGreater(found.attempted, 0)
    self.assertEqual(found.failed, 0)


if __name__ == '__main__':
  absltest.main()
