"""Question: what do ten ways to compress a small model cost, in accuracy, bytes, FLOPs and time?

Two models learn real handwritten digits (scikit-learn's 1,797 images of 8 by 8 pixels, which its
wheel carries; 360 are held out). Each is trained dense, then compressed nine ways, every way named
by its spelled form and trained by the same `jsp.train_step`. Each result is packed, run packed
through `jsp.dispatch`, and measured so: the accuracy is the packed model's.

Command: make demo
Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI repository (1998).
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets
from sklearn import model_selection

import jaxsparse as jsp
from experiments import models
from jaxsparse import reports

_HELD_OUT = 360


@dataclasses.dataclass(frozen=True)
class Compression:
  """One way to compress: its name for readers, its spelled form, and how it is trained.

  Attributes:
    label: what the report calls it.
    transform: spelled form; `{every}` and `{inner}` stand for the model's patterns.
    steps: optimizer steps.
    rate: peak learning rate.
    from_scratch: whether it starts from the fresh weights instead of the dense model's.
  """

  label: str
  transform: str
  steps: int = 200
  rate: float = 1e-3
  from_scratch: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes a run of the experiment.

  Attributes:
    models: names in `models.MODELS`.
    compressions: what is tried on each.
    batch_size: images a step.
    latency_rounds: timed runs of each packed model, interleaved.
    seed: of initialization, order and augmentation; the split is always the same.
  """

  models: tuple[str, ...]
  compressions: tuple[Compression, ...]
  batch_size: int = 64
  latency_rounds: int = 30
  seed: int = 0

  def __post_init__(self):
    unknown = [name for name in self.models if name not in models.MODELS]
    if unknown or not self.models:
      raise ValueError(f'Models are {sorted(models.MODELS)}, got {list(self.models)}.')
    for name in ('batch_size', 'latency_rounds'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}.')
    if not 0 <= self.seed < 2**31:
      raise ValueError(f'seed must be at least 0 and less than 2**31, got {self.seed}.')

  @property
  def tasks(self) -> int:
    """How many runs there will be, dense ones included."""
    return len(self.models) * len(self.compressions)


def get_config(arg: str = '') -> Config:
  """Returns the experiment's configuration.

  Args:
    arg: `''` for the whole, `'smoke'` for under a minute on a CPU.

  Raises:
    ValueError: for any other word.

  Example:
    >>> get_config('smoke').models
    ('cnn',)
  """
  if arg == '':
    return Config(models=('cnn', 'transformer'), compressions=_compressions())
  if arg == 'smoke':
    few = [c for c in _compressions() if c.label in ('dense', '2:4', 'int8')]
    few = [dataclasses.replace(c, steps=c.steps // 10) for c in few]
    return Config(models=('cnn',), compressions=tuple(few), latency_rounds=3)
  raise ValueError(f"Configurations of digits are '' and 'smoke', got {arg!r}.")


def _compressions():
  """What is tried, dense first: it starts the others, and they are compared with it.

  A first layer reduces over 8 or 9 values, which 4 does not always divide and low rank does not
  shorten: those are for `inner`. What loses most of its weights gets longest to recover.
  """
  return (
    Compression('dense', 'identity()', 900, 3e-3, from_scratch=True),
    Compression(
      'magnitude 90 %',
      "at('{every}', magnitude(cubic(0.9, start=20, end=400, every=20), distribution=erk))",
      600,
      5e-3,
    ),
    Compression(
      'RigL 90 %',
      "at('{every}', rigl(0.9, distribution=erk, every=100, end=700))",
      1000,
      1e-2,
      from_scratch=True,
    ),
    Compression(
      'blocks 4×4, 50 %', "at('{inner}', magnitude(0.5, pattern=block(4, 4)))", 300, 3e-3
    ),
    Compression('2:4', "at('{inner}', nm(2, 4))"),
    Compression('int8', "at('{every}', fake_quantize('int8'))"),
    Compression('int4 by LSQ', "at('{every}', lsq(bits=4))"),
    Compression('2:4 and int8', "at('{inner}', nm(2, 4) | fake_quantize('int8'))"),
    Compression('low rank', "at('{inner}', low_rank(0.25))", 300, 3e-3),
    Compression('clustered', "at('{every}', clustered(16))"),
  )


class Digits(NamedTuple):
  """Images in [0, 1] and labels, stratified."""

  train_images: np.ndarray  # [1437, 8, 8] float32
  train_labels: np.ndarray  # [1437] int32
  test_images: np.ndarray  # [360, 8, 8] float32
  test_labels: np.ndarray  # [360] int32


def load() -> Digits:
  """Returns the digits in their fixed, shuffled, stratified split."""
  raw = datasets.load_digits()
  images, labels = (raw.images / 16).astype(np.float32), raw.target.astype(np.int32)
  x, x_test, y, y_test = model_selection.train_test_split(
    images, labels, test_size=_HELD_OUT, stratify=labels, random_state=0
  )
  return Digits(x, y, x_test, y_test)


def batches(digits: Digits, *, count: int, size: int, seed: int):
  """Yields `count` batches of training images, each shifted by up to one pixel."""
  rng = np.random.default_rng(seed)
  padded = np.pad(digits.train_images, ((0, 0), (1, 1), (1, 1)))
  shifted = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), (1, 2))
  for _ in range(count):
    chosen = rng.integers(len(padded), size=size)
    down, right = rng.integers(3, size=(2, size))
    yield shifted[chosen, down, right], digits.train_labels[chosen]


class Packed(NamedTuple):
  """A compression of one model, trained, packed and not yet measured."""

  compression: Compression
  spelled: str
  params: Any  # formats where something was packed
  masks: Mapping[str, np.ndarray]
  sparsity: float | None
  train_seconds: float


class Results(NamedTuple):
  """What a report is made of."""

  records: list[reports.Record]
  pictures: list[reports.Picture]
  abouts: dict[str, str]


def train(model, transform, params, digits, *, steps, rate, config, progress=lambda step: None):
  """Trains effective weights `params` under a transform; returns latents and state.

  Args:
    model: a `models.Model`.
    transform: a `jsp.Transform`.
    params: effective weights to start from.
    digits: `Digits`.
    steps: optimizer steps.
    rate: peak learning rate.
    config: for batch size and seed.
    progress: called with the number of finished steps.
  """

  def loss_fn(params, images, labels):
    logits = model.apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), steps)
  # A step size is one number for many weights: LSQ learns it more slowly than them.
  slower = lambda count: 0.1 * schedule(count)
  tx = optax.partition(
    {'weights': optax.adamw(schedule, weight_decay=1e-2), 'steps': optax.adam(slower)},
    jsp.label({'(.*/)?step_size': 'steps', '.*': 'weights'}),
  )
  axes = jsp.axes_of(model.apply, params, digits.test_images[:1])
  ts = jsp.TrainState.create(transform, tx, params, axes=axes)
  step = jsp.train_step(loss_fn, tx, transform)
  data = batches(digits, count=steps, size=config.batch_size, seed=config.seed)
  for done, (images, labels) in enumerate(data, 1):
    ts, loss, _ = step(ts, images, labels)
    progress(done)
  if not np.isfinite(float(loss)):
    raise ValueError(f'{jsp.spell(transform)}: the loss is {float(loss)} after step {steps}.')
  return ts.params, ts.state


def compress(model, compression, dense, digits, *, config, progress=lambda step: None) -> Packed:
  """Trains one compression of a model and packs it.

  Args:
    model: a `models.Model` with fresh weights.
    compression: which.
    dense: the trained dense weights.
    digits: `Digits`.
    config: `Config`.
    progress: called with the number of finished steps.
  """
  spelled = compression.transform.format(every=model.every, inner=model.inner)
  transform = jsp.parse(spelled)
  started = time.perf_counter()
  latents, state = train(
    model,
    transform,
    model.params if compression.from_scratch else dense,
    digits,
    steps=compression.steps,
    rate=compression.rate,
    config=config,
    progress=progress,
  )
  seconds = time.perf_counter() - started
  masks = {name: np.asarray(mask) for name, mask in jsp.masks(state).items()}
  return Packed(
    compression=compression,
    spelled=spelled,
    params=transform.pack(latents, state),
    masks=masks,
    sparsity=float(jsp.sparsity(state)) if masks else None,
    train_seconds=seconds,
  )


def run(config: Config, *, progress: reports.Progress) -> Results:
  """Runs the whole experiment: trains, compresses, packs and measures.

  Args:
    config: from `get_config`.
    progress: from `reports.show_progress`; one task a run.
  """
  digits, results = load(), Results([], [], {})
  for name in config.models:
    model = models.MODELS[name](config.seed)
    results.abouts[name] = model.about
    packed, dense = [], None
    for compression in config.compressions:
      advance = progress.start(f'{name}: {compression.label}', compression.steps)
      packed.append(
        compress(model, compression, dense, digits, config=config, progress=advance)
      )
      dense = packed[0].params
      progress.finish(f'{name}: {compression.label}, {packed[-1].train_seconds:.1f} s')
    results.records.extend(measure(name, model, packed, digits, config=config))
    results.pictures.extend(_picture(name, model, p) for p in packed)
  return results


def measure(name, model, packed, digits, *, config) -> list[reports.Record]:
  """Measures packed models beside the first of them, which is the dense one.

  Args:
    name: the model's name.
    model: a `models.Model`.
    packed: `Packed`, the dense one first.
    digits: `Digits`; the held-out images are one batch.
    config: `Config`.
  """
  images = jnp.asarray(digits.test_images)
  forward = jax.jit(jsp.dispatch(model.apply))
  guesses = [np.asarray(forward(p.params, images)).argmax(-1) for p in packed]
  seconds = latencies(
    [lambda p=p: forward(p.params, images).block_until_ready() for p in packed],
    rounds=config.latency_rounds,
  )
  records = []
  for p, guess, time_seconds in zip(packed, guesses, seconds):
    flops = jsp.flops(model.apply, p.params, images)
    records.append(
      reports.Record(
        model=name,
        label=p.compression.label,
        transform=p.spelled,
        baseline=p is packed[0],
        seed=config.seed,
        accuracy=float((guess == digits.test_labels).mean()),
        size_bytes=int(jsp.nbytes(p.params)),
        flops_ideal=flops.ideal / len(images),
        flops_executed=flops.executed / len(images),
        latency_ratio=time_seconds / seconds[0],
        sparsity=p.sparsity,
        train_seconds=p.train_seconds,
        details={
          'starts_from': 'fresh weights' if p.compression.from_scratch else 'dense weights',
          'steps': p.compression.steps,
          'peak_learning_rate': p.compression.rate,
          'latency_microseconds': round(1e6 * time_seconds, 1),
          'weights': _weights(p.params),
        },
      )
    )
  return records


def latencies(functions: list[Callable[[], Any]], *, rounds: int) -> list[float]:
  """Returns the median seconds of each function; rounds interleave, so that all share the noise.

  Example:
    >>> len(latencies([lambda: None, lambda: None], rounds=3))
    2
  """
  times = [[] for _ in functions]
  for _ in range(rounds):
    for function, found in zip(functions, times):
      started = time.perf_counter()
      function()
      found.append(time.perf_counter() - started)
  return [statistics.median(found) for found in times]


def files(results: Results, *, provenance: Mapping[str, str]) -> dict[str, str | bytes]:
  """Returns the run directory's files, by name, for `reports.write_directory`."""
  title = 'Compressing two small models of handwritten digits'
  count = len({r.label for r in results.records if not r.baseline})
  summary = (
    f'Each model is trained dense, then compressed {count} ways. Every result is packed and run '
    f'packed; its accuracy is that of the packed weights on {_HELD_OUT} held-out images, so one '
    f'image is {100 / _HELD_OUT:.2f} points.'
  )
  page = reports.html_page(
    results.records,
    title=title,
    summary=summary,
    provenance=provenance,
    models=results.abouts,
    pictures=results.pictures,
  )
  return {
    'results.jsonl': ''.join(reports.to_json(r) + '\n' for r in results.records),
    'pareto.png': reports.pareto_png(results.records, title=title),
    'report.html': page,
  }


def _picture(name, model, packed):
  """The mask where there is one, else the values: the corner of 64 inputs and 64 outputs."""
  values = packed.masks.get(model.portrait)
  if values is None:
    values = dict(_leaves(jsp.densify(packed.params)))[model.portrait]
  corner = np.asarray(values).reshape(len(values), -1)[:64, :64]
  return reports.Picture(name, packed.compression.label, model.portrait, corner)


def _weights(params):
  """A row a parameter, as the report's details show it."""
  return [
    {
      'name': name,
      'shape': list(leaf.shape),
      'format': type(leaf).__name__ if jsp.is_format(leaf) else str(leaf.dtype),
      'size_bytes': int(leaf.nbytes),
      'zeros': float((jsp.densify(leaf) == 0).mean()),
    }
    for name, leaf in _leaves(params)
  ]


def _leaves(params):
  flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=jsp.is_format)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return [(name(path).removesuffix('/value'), leaf) for path, leaf in flat]
