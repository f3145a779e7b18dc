"""What quantizing a pretrained sentence transformer costs: recipes x figure x bytes.

    python -m experiments.benchmarks.quantized_sentences [concepts [label ...]]

Each recipe quantizes the 36 matrices of MiniLM's layers (10.6 million weights), calibrated on 512
glosses that no figure is over. The figure is that of `experiments.sentence`, R@1 over 2,000
WordNet concepts, with the 95 % interval of a paired bootstrap of its difference to the float
model. The error is the mean over the matrices of |X (W' - W)|^2 / |X W|^2 on 512 other glosses.
Bytes are those of the matrices as packed, scales included.
Needs: make models; apt-get install wordnet-base.
"""

import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as jsp
from experiments import bootstrap
from experiments import minilm
from experiments import sentence
from experiments import wordnet

WEIGHTS = r'layer_\d/.*kernel'
_LENGTH = 16


class Recipe(NamedTuple):
  """One row of the table.

  Attributes:
    label: short, for the command line.
    weights: a spelled transform; of `mixed` what it chooses from.
    activations: None (float), or a grid and 'tensor' or 'row' (dynamic) or 'static' (calibrated).
    sequential: whether each matrix is calibrated on what the ones before have become.
  """

  label: str
  weights: str
  activations: str | None = None
  sequential: bool = False


RECIPES = (
  Recipe('w8', "quantize('int8')"),
  Recipe('w8a8', "quantize('int8')", 'int8 row'),
  Recipe('w8a8-zeros', "quantize('int8')", 'uint8 row'),
  Recipe('w8a8-tensor', "quantize('int8')", 'int8 tensor'),
  Recipe('w8a8-static', "quantize('int8')", 'int8 static'),
  Recipe('w8a8-static-zeros', "quantize('int8')", 'uint8 static'),
  Recipe('smooth', 'smoothquant(alpha=0.7)', 'int8 row'),
  Recipe('smooth-static', 'smoothquant(alpha=0.85)', 'int8 static'),
  Recipe('mxfp8', "quantize('mxfp8')"),
  Recipe('rtn4', "quantize('int4', group=64)"),
  Recipe('awq4', "awq('int4', group=64)"),
  Recipe('gptq4', "gptq('int4', group=64)"),
  Recipe('gptq4-sequential', "gptq('int4', group=64)", None, True),
  Recipe('adaround4', "adaround('int4', group=64, steps=300)"),
  Recipe('autoround4', "autoround('int4', group=64)"),
  Recipe('gptq4-a8', "gptq('int4', group=64)", 'uint8 row'),
  Recipe('hqq4', "quantize('uint4', group=64, scale='hqq')"),
  Recipe('nf4', 'nf4(double_quantize=True)'),
  Recipe('mxfp4', "quantize('mxfp4')"),
  Recipe('nvfp4', "quantize('nvfp4')"),
  Recipe('rtn3', "quantize('int3', group=64)"),
  Recipe('gptq3', "gptq('int3', group=64)"),
  Recipe('mixed', 'int8 or int4 by gptq'),
)


class Calibration(NamedTuple):
  """Glosses `[8, 64, 16]` without padding, and what was measured on them."""

  batches: list
  grams: dict
  peaks: dict
  ranges: dict
  others: dict  # Grams of 512 other glosses


def calibration(params: Any) -> Calibration:
  """Statistics of the matrices' inputs in the float model."""
  ids = minilm.tokenize([s.gloss for s in wordnet.load().train][:6000], length=_LENGTH)
  full = ids[(ids != 0).all(1)][:1024]
  if len(full) < 1024:
    raise ValueError(f'only {len(full)} glosses fill {_LENGTH} tokens; expected 1024.')
  batches, others = (list(part.reshape(8, 64, _LENGTH)) for part in (full[:512], full[512:]))

  def seen(batches, observer):
    found = jsp.calibrate(minilm.apply, params, batches, observer)
    return {name: value for name, value in found.items() if re.fullmatch(WEIGHTS, name)}

  return Calibration(
    batches,
    *(seen(batches, observer) for observer in (jsp.gram, jsp.input_max, jsp.range)),
    seen(others, jsp.gram),
  )


def errors(grams: dict, dense: Any, new: Any) -> dict[str, float]:
  """`|X (W' - W)|^2 / |X W|^2` of each matrix, from X^T X."""
  found = {}
  for name, gram in grams.items():
    layer, *rest = name.split('/')
    w, v = (np.asarray(tree[layer][rest[0]][rest[1]], np.float64) for tree in (dense, new))
    size = lambda m, gram=np.asarray(gram, np.float64): np.sum(m * (gram @ m))
    found[name] = size(v - w) / size(w)
  return found


def mixed(params: Any, seen: Calibration) -> str:
  """The recipe that moves the embeddings least in bytes midway between int4 and int8."""
  ids = [(b, jax.jit(minilm.apply)(params, b)) for b in seen.batches[:2]]
  loss = lambda p, batch: 1 - (minilm.apply(p, batch[0]) * batch[1]).sum(-1).mean()
  schemes = ("gptq('int8')", "gptq('int4', group=64)")
  costs = jsp.scheme_costs(loss, params, ids, schemes, weights=WEIGHTS, stats=seen.grams)
  budget = sum(choice.nbytes for choices in costs.values() for choice in choices) // 2
  return jsp.allocate(costs, nbytes=budget).recipe


def compressed(recipe: Recipe, params: Any, seen: Calibration) -> tuple[Any, int]:
  """The model with packed weights, and the bytes of its matrices."""
  text = mixed(params, seen) if recipe.label == 'mixed' else recipe.weights
  transform = jsp.at(WEIGHTS, jsp.parse(text)) if text is recipe.weights else jsp.parse(text)
  if recipe.sequential:
    latents, state = jsp.one_shot(transform, minilm.apply, params, seen.batches)
  else:
    stats = seen.peaks if text.startswith('smoothquant') else seen.grams
    latents, state = transform.init(params, stats=stats)
  packed = transform.pack(latents, state)
  return packed, matrix_bytes(packed)


def matrix_bytes(params: Any) -> int:
  """Bytes of the matrices of all layers, stored or dense."""
  layers = [params[f'layer_{n}'] for n in range(minilm.LAYERS)]
  return sum(
    jsp.nbytes(part['kernel']) for layer in layers for part in layer.values() if 'kernel' in part
  )


def forward(recipe: Recipe, seen: Calibration):
  """What embeds texts with the recipe's activations."""
  if recipe.activations is None:
    return _float
  dtype, way = recipe.activations.split()
  options = {'granularity': way}
  if way == 'static':
    smooth = recipe.weights.startswith('smoothquant')
    options = {'ranges': seen.peaks if smooth else seen.ranges}
  return jax.jit(jsp.quantize_activations(minilm.apply, dtype, weights=WEIGHTS, **options))


_float = jax.jit(minilm.apply)


def main(concepts: int = 2000, *labels: str) -> None:
  """Prints the table, row by row."""
  unknown = {*labels} - {r.label for r in RECIPES}
  if unknown:
    raise ValueError(
      f'{", ".join(sorted(unknown))}: no such recipe; there are '
      f'{", ".join(r.label for r in RECIPES)}.'
    )
  params = jax.tree.map(jnp.asarray, minilm.load())
  seen, whole = calibration(params), matrix_bytes(params)
  dense = sentence.hits(_float, params, concepts)
  print(f'float32: R@1 {dense.mean():.4f} over {concepts} concepts, {whole:,} bytes')
  print(
    f'{"recipe":17} {"weights":42} {"inputs":12} {"bytes":>9} {"share":>6} {"error":>8} '
    f'{"R@1":>6} difference [95 %], points'
  )
  for recipe in RECIPES:
    if labels and recipe.label not in labels:
      continue
    packed, size = compressed(recipe, params, seen)
    values = jsp.densify(packed)
    error = np.mean([*errors(seen.others, params, values).values()])
    # Row scales of smoothquant lie in the formats; all else is the same program on other values.
    given = packed if recipe.weights.startswith('smoothquant') else values
    hits = sentence.hits(forward(recipe, seen), given, concepts)
    low, high = bootstrap.paired(hits, dense)
    points = 100 * (hits.mean() - dense.mean())
    print(
      f'{recipe.label:17} {recipe.weights:42} {recipe.activations or "float":12} {size:9,} '
      f'{size / whole:6.3f} {error:8.5f} {hits.mean():6.4f} {points:+.2f} '
      f'[{100 * low:+.2f}, {100 * high:+.2f}]',
      flush=True,
    )


if __name__ == '__main__':
  main(*map(int, sys.argv[1:2]), *sys.argv[2:])
