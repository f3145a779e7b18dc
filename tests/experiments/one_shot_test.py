"""One-shot pruning of the pretrained MiniLM: error of each layer's output, and of the task.

Its table: `pytest tests/experiments/one_shot_test.py -m slow -s`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from experiments import minilm
from experiments import packaged
from experiments import sentence
from experiments import wordnet

_SYNSETS = 500
_LENGTH = 16
_METHODS = {
  '50 %': ('magnitude(0.5)', 'wanda(0.5)', 'sparsegpt(0.5)'),
  '2:4': ('nm(2, 4)', 'wanda(pattern=n_m(2, 4))', 'sparsegpt(pattern=n_m(2, 4))'),
}


@pytest.fixture(scope='module')
def built():
  try:
    minilm.load()
    wordnet.load()
  except packaged.MissingError as error:
    pytest.skip(str(error))
  return sentence.build(dataclasses.replace(sentence.get_config('smoke'), synsets=_SYNSETS))


def _calibration():
  """Glosses of concepts that the figure is not over, without padding: 8 batches of 64."""
  glosses = [s.gloss for s in wordnet.load().train]
  ids = minilm.tokenize(glosses[:2500], length=_LENGTH)
  full = ids[(ids != 0).all(1)][:512]
  assert full.shape == (512, _LENGTH)
  return list(full.reshape(8, 64, _LENGTH))


def _errors(grams, dense, pruned):
  """`|X (W' - W)|^2 / |X W|^2` of each layer, from X^T X."""
  found = {}
  for name, gram in grams.items():
    layer, *rest = name.split('/')
    w, v = (np.asarray(tree[layer][rest[0]][rest[1]], np.float64) for tree in (dense, pruned))
    size = lambda m, gram=np.asarray(gram, np.float64): np.einsum('io,ij,jo->', m, gram, m)
    found[name] = size(v - w) / size(w)
  return found


@pytest.mark.slow
def test_errors_order_the_methods_and_the_task_figure_is_told(built):
  params, batches = jax.tree.map(jnp.asarray, minilm.load()), _calibration()
  grams = jsp.calibrate(minilm.apply, params, batches, jsp.gram)
  grams = {name: g for name, g in grams.items() if name.endswith('kernel')}
  print(f'\ndense R@1 {built.evaluate(minilm.load())["accuracy"]:.3f} of {_SYNSETS}')
  for target, methods in _METHODS.items():
    errors = []
    for text in methods:
      transform = jsp.at(built.weights, jsp.parse(text))
      pruned = transform.apply(*transform.init(params, stats=grams))
      errors.append(_errors(grams, params, pruned))
      _tell(built, f'{target} {text}', np.mean([*errors[-1].values()]), pruned)
    magnitude, wanda, sparsegpt = (np.array([*e.values()]) for e in errors)
    assert magnitude.mean() > wanda.mean() > sparsegpt.mean()
    # Wanda compares inside each output, magnitude over the whole layer: a few layers gain by that.
    assert (sparsegpt < wanda).all() and (wanda < magnitude).mean() > 0.8
  for target, (*_, text) in _METHODS.items():
    transform = jsp.at(built.weights, jsp.parse(text))
    pruned = transform.apply(*jsp.one_shot(transform, minilm.apply, params, batches[:2]))
    _tell(built, f'{target} {text}, sequential, 2 batches', float('nan'), pruned)


def _tell(built, what, error, pruned):
  kernels = [x for x in jax.tree.leaves(pruned['layer_0']) if x.ndim == 2]
  zeros = np.mean([float((x == 0).mean()) for x in kernels])
  figures = built.evaluate(pruned)
  print(
    f'{what}: zeros {zeros:.3f}, error {error:.4f}, R@1 {figures["accuracy"]:.3f} '
    f'[{figures["low"]:+.3f}, {figures["high"]:+.3f}]',
    flush=True,
  )
