"""Question: what do weights and activations of few bits cost a small classifier that learns them?

    taskset -c 1 python -m experiments.benchmarks.quantized_training [table|choose] [mlp|cnn ...]

Every matrix and filter of LeNet-300-100 (`mlp`) and of a CNN is quantized by LSQ, first layer and
head included, starting from the trained float model. The float figure is that of the same model
trained on in float, for the same steps at the same rate. `choose` tells settings apart by a fifth
of the training images, held out; `table` trains on all of them. Digits of scikit-learn, 360 test
images: one is 0.28 points.

The steps of the 2-bit row were chosen so, on the MLP. Those of the 4-bit row were 1,000 at first,
which lost 0.37 (MLP) and 0.56 points (CNN) of test accuracy; held-out images of the CNN did not
tell 1,000 from 3,000, and the row got the 3,000 of the other.
"""

import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse as jsp
from experiments import classifiers
from experiments import images
from experiments import optimizers

WIDTHS = {'mlp': 100, 'cnn': 16}
_BATCH = 64


class Recipe(NamedTuple):
  """How a model is trained.

  Attributes:
    transform: spelled form, of every kernel.
    activation_bits: of the inputs of every product, by LSQ; None: they stay float.
    steps: of training.
    rate: the peak learning rate.
    seeds: how many the table has.
  """

  transform: str
  activation_bits: int | None = None
  steps: int = 1000
  rate: float = 1e-3
  seeds: int = 3


FIRST = Recipe('identity()', steps=1500, rate=3e-3)
ROWS = {
  '4-bit weights and inputs': Recipe('lsq(bits=4)', 4, steps=3000),
  '2-bit weights': Recipe('lsq(bits=2)', steps=3000, seeds=5),
}
CANDIDATES = {
  f'{recipe.transform}, {recipe.steps} steps at {recipe.rate:g}': recipe
  for recipe in (
    Recipe('lsq(bits=4)', 4),
    Recipe('lsq(bits=4)', 4, steps=3000),
    Recipe("lsq(bits=4, granularity='channel')", 4, steps=3000),
    Recipe('lsq(bits=2)'),
    Recipe('lsq(bits=2)', steps=3000),
    Recipe("lsq(bits=2, granularity='channel')"),
    Recipe("lsq(bits=2, granularity='channel')", steps=3000),
  )
}


class Trained(NamedTuple):
  """A trained model, packed: `ranges` are of its inputs."""

  params: Any
  ranges: dict


class Bench:
  """One model on one split of the images; programs are compiled once and serve all seeds."""

  def __init__(self, name: str, data: images.Images):
    self.data = data
    self.model = classifiers.MODELS[name](side=data.side, width=WIDTHS[name])
    self._programs = {}

  def train(self, recipe: Recipe, params: Any, *, seed: int) -> Trained:
    """Trains effective weights `params` on."""
    transform = jsp.at('(.*/)?kernel', jsp.parse(recipe.transform))
    ranges = {}
    if recipe.activation_bits is not None:
      calibration = [self.data.train_images[:256]]
      ranges = jsp.activation_ranges(
        self.model.apply, params, calibration, bits=recipe.activation_bits
      )
    latents, state = transform.init(params)
    if recipe not in self._programs:
      self._programs[recipe] = self._program(recipe, transform)
    tx, program = self._programs[recipe]
    both = jax.tree.map(jnp.copy, (latents, ranges))
    opt_state = tx.init(both)
    # A loop of Python: inside a scan XLA:CPU convolves without its fast kernels.
    for step in range(recipe.steps):
      batch = images.batch(self.data, step, size=_BATCH, seed=seed, shift=1)
      both, opt_state, loss = program(both, opt_state, state, batch)
    assert np.isfinite(float(loss)), f'{recipe}: the last loss was not finite.'
    latents, ranges = both
    return Trained(transform.pack(latents, state), ranges)

  def accuracy(self, trained: Trained) -> float:
    """Percent of the test images that the packed model gets right."""
    logits = self._forward(jsp.densify(trained.params), trained.ranges, self.data.test_images)
    return 100 * float((np.asarray(logits).argmax(-1) == self.data.test_labels).mean())

  @functools.cached_property
  def _forward(self):
    return jax.jit(jsp.learned_activations(self.model.apply))

  def _program(self, recipe, transform):
    tx = optimizers.warm_adamw(recipe.rate, steps=recipe.steps, weight_decay=1e-2)
    run = jsp.learned_activations(self.model.apply)

    def loss(both, state, batch):
      logits = run(jsp.densify(transform.apply(both[0], state)), both[1], batch['images'])
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels']).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def program(both, opt_state, state, batch):
      value, grads = jax.value_and_grad(loss)(both, state, batch)
      updates, opt_state = tx.update(grads, opt_state, both)
      return optax.apply_updates(both, updates), opt_state, value

    return tx, program


def without_test(data: images.Images) -> images.Images:
  """The training images alone, a fifth of them in the place of the test images."""
  cut = len(data.train_labels) // 5
  return images.Images(
    data.train_images[cut:], data.train_labels[cut:], data.train_images[:cut],
    data.train_labels[:cut],
  )


def compare(name: str, rows: dict[str, Recipe], data: images.Images, seeds: int | None = None):
  """Prints, and returns, {label: differences to float of each seed, in points}.

  Args:
    name: of the model.
    rows: what is tried.
    data: the split.
    seeds: how many; None: as many as each recipe says.
  """
  bench, found = Bench(name, data), {label: [] for label in rows}
  figures = {label: [] for label in rows}
  for seed in range(seeds or max(recipe.seeds for recipe in rows.values())):
    start = bench.train(FIRST, jax.jit(bench.model.init)(seed), seed=seed)
    longer = {}
    for label, recipe in rows.items():
      if seed >= (seeds or recipe.seeds):
        continue
      plain = recipe._replace(transform='identity()', activation_bits=None)
      if plain not in longer:
        longer[plain] = bench.accuracy(bench.train(plain, start.params, seed=seed + 1000))
      right = bench.accuracy(bench.train(recipe, start.params, seed=seed + 1000))
      found[label].append(right - longer[plain])
      figures[label].append((longer[plain], right))
      print(f'{name}, {label}, seed {seed}: {longer[plain]:.2f}, {right:.2f}', flush=True)
  for label, points in found.items():
    float_, right = np.mean(figures[label], axis=0)
    print(
      f'{name}, {label}: float {float_:.2f} %, quantized {right:.2f} %, difference '
      f'{np.mean(points):+.2f} points over {len(points)} seeds, each '
      f'{", ".join(f"{p:+.2f}" for p in points)}',
      flush=True,
    )
  return found


def main(arguments: list[str]) -> None:
  """Prints the table, or what settings do on held-out training images."""
  what, *names = arguments or ['table']
  data = images.load('digits')
  for name in names or WIDTHS:
    if what == 'choose':
      compare(name, CANDIDATES, without_test(data), seeds=2)
    else:
      compare(name, ROWS, data)


if __name__ == '__main__':
  main(sys.argv[1:])
