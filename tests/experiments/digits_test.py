"""The digits experiment, small: the split, the configuration, a run from end to end."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from experiments import digits
from experiments import models
from jaxsparse import reports


@pytest.fixture(scope='module')
def results():
  with contextlib.redirect_stdout(None), reports.show_progress('', 3) as progress:
    return digits.run(digits.get_config('smoke'), progress=progress)


def test_split_is_fixed_stratified_and_disjoint():
  first, second = digits.load(), digits.load()
  for a, b in zip(first, second):
    np.testing.assert_array_equal(a, b)
  assert first.train_images.shape == (1437, 8, 8) and first.test_images.shape == (360, 8, 8)
  assert set(np.bincount(first.test_labels)) <= {35, 36, 37}
  # The data set itself has no two equal images, so equal images would be a leak.
  rows = np.concatenate([first.train_images, first.test_images]).reshape(-1, 64)
  assert len(np.unique(rows, axis=0)) == 1797


def test_batches_shift_by_a_pixel_at_most_and_repeat_by_seed():
  data = digits.load()
  once, again = (list(digits.batches(data, count=2, size=4, seed=3)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, once, again)
  assert once[0][0].shape == (4, 8, 8) and once[0][0].max() <= 1


def test_config_refuses_what_it_does_not_know():
  with pytest.raises(ValueError, match="'' and 'smoke', got 'smok'"):
    digits.get_config('smok')
  config = digits.get_config()
  with pytest.raises(ValueError, match=r"Models are \['cnn', 'transformer'\], got \['mlp'\]"):
    dataclasses.replace(config, models=('mlp',))
  with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
    dataclasses.replace(config, batch_size=0)


@pytest.mark.parametrize('name', models.MODELS)
def test_every_compression_names_weights_of_every_model(name):
  model = models.MODELS[name](0)
  axes = jsp.axes_of(model.apply, model.params, jnp.zeros((1, 8, 8)))
  config = digits.get_config()
  assert len(config.compressions) >= 9
  for compression in config.compressions:
    spelled = compression.transform.format(every=model.every, inner=model.inner)
    transform = jsp.parse(spelled)
    assert jsp.spell(jsp.parse(jsp.spell(transform))) == jsp.spell(transform)
    jax.eval_shape(lambda p, t=transform: t.init(p, axes=axes), model.params)


def test_records_say_what_was_measured(results):
  dense, two_four, int8 = results.records
  assert dense.baseline and dense.latency_ratio == 1 and dense.sparsity is None
  assert two_four.sparsity == 0.5
  assert int8.size_bytes < two_four.size_bytes < dense.size_bytes
  assert two_four.flops_ideal < dense.flops_ideal == int8.flops_ideal
  for record in results.records:
    assert not record.reasons and record.accuracy > 0.3
    assert sum(w['size_bytes'] for w in record.details['weights']) == record.size_bytes
  assert max(w['zeros'] for w in two_four.details['weights'] if len(w['shape']) > 1) >= 0.5


def test_run_directory_holds_four_readings_of_the_same_records(results, tmp_path):
  files = digits.files(results, provenance={'Command': 'a test'})
  path = reports.write_directory(tmp_path / 'run', files)
  assert sorted(p.name for p in path.iterdir()) == ['pareto.png', 'report.html', 'results.jsonl']
  assert reports.read_jsonl(path / 'results.jsonl') == results.records
  page = (path / 'report.html').read_text()
  assert all(record.transform.replace("'", '&#x27;') in page for record in results.records)
  assert page.count('data:image/png') == 3


@pytest.mark.slow
def test_magnitude_90_loses_at_most_one_point_over_three_seeds():
  data, loss = digits.load(), []
  for seed in range(3):
    config = dataclasses.replace(digits.get_config(), models=('cnn',), seed=seed)
    model = models.cnn(seed)
    runs = {c.label: c for c in config.compressions}
    dense = digits.compress(model, runs['dense'], None, data, config=config)
    sparse = digits.compress(model, runs['magnitude 90 %'], dense.params, data, config=config)
    records = digits.measure('cnn', model, [dense, sparse], data, config=config)
    assert abs(records[1].sparsity - 0.9) < 0.005
    print(seed, records[0].accuracy, records[1].accuracy)
    loss.append(records[0].accuracy - records[1].accuracy)
  assert np.mean(loss) <= 0.01, loss
