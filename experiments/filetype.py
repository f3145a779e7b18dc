"""Question: what does a compression cost a pretrained network that names the types of files?

Magika's CNN reads 2,048 bytes of a file and names its type. The files are those of Python's library
and of the packages that are installed anyway, the truth is their extension. Both are noisy, so the
agreement with the dense model is a figure too. With `steps`, the compressed model learns to answer
as the dense one does, on other files.

Command: python -m launch.run --experiment=filetype --transform="quantize('int4')"
Needs: make models
Expected, seed 0, CPU-seconds (2 shared x86_64 cores, Python 3.11.7, jax 0.10.2, 2026-11-22); 568
files of 39 types, which depend on installed versions, and 3.14 MB of dense weights:

  size     transform         accuracy  agreement  interval of difference  megabytes  seconds
  ''       identity()        0.933     1          0                       3.14       11
  ''       quantize('int8')  0.933     1          0                       0.84       13
  ''       quantize('int4')  0.938     0.982      -0.005, +0.016          0.46       13
  ''       quantize('int3')  0.926     0.958      -0.019, +0.005          0.46       13
  ''       nm(2, 4)          0.919     0.965      -0.026, -0.004          1.70       13
  ''       magnitude(0.5)    0.928     0.967      -0.018, +0.007          1.70       15
  ''       magnitude(0.7)    0.903     0.947      -0.048, -0.014          1.09       15
  ''       magnitude(0.9)    0.322     0.340      -0.650, -0.570          0.48       14
  recover  magnitude(0.9)    0.903     0.905      -0.051, -0.009          0.48       70
  smoke    identity()        0.925     1          0                       3.14       6

Source: Fratantonio et al., "Magika: AI-Powered Content-Type Detection" (arXiv:2409.13768).
"""

import dataclasses
import functools
import platform

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as jsp
from experiments import bootstrap
from experiments import checks
from experiments import labelled_files
from experiments import magika_cnn
from experiments import optimizers
from experiments import task

_BATCH = 32  # files a call of evaluation


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes a run.

  Attributes:
    per_class: the most files of a type, in the evaluation and again in training.
    steps: optimizer steps of self-distillation under the transform; 0 only compresses.
    batch_size: files a step.
    rate: peak learning rate; warmed up over a tenth of the steps, then a cosine to zero.
    resamples: of the bootstrap.
    seed: of the order of training files and of the bootstrap.
  """

  per_class: int = 60
  steps: int = 0
  batch_size: int = 16
  rate: float = 1e-3
  resamples: int = 10_000
  seed: int = 0

  def __post_init__(self):
    checks.whole('per_class', self.per_class, least=1, most=1000)
    checks.whole('steps', self.steps, least=0)
    checks.whole('batch_size', self.batch_size, least=1, most=1024)
    checks.positive('rate', self.rate)
    checks.whole('resamples', self.resamples, least=100, most=1_000_000)
    checks.whole('seed', self.seed, least=0, most=2**31 - 1)


_SIZES = {'': Config(), 'smoke': Config(per_class=4), 'recover': Config(steps=100)}


def get_config(arg: str = '') -> Config:
  """Returns the configuration of a size.

  Args:
    arg: '' compresses only, 'recover' distils too, 'smoke' is over a tenth of the files.

  Raises:
    ValueError: for any other word.

  Example:
    >>> get_config('smoke').per_class
    4
  """
  checks.size('filetype', arg, _SIZES)
  return _SIZES[arg]


def build(config: Config) -> task.Task:
  """Returns the task of a configuration.

  Args:
    config: from `get_config`.

  Raises:
    MissingError: the model's package is not installed.
    ValueError: its files have other contents.
  """
  magika_cnn.load()
  split = labelled_files.load(config.per_class)
  if len(split.train) < config.batch_size:
    raise ValueError(
      f'batch_size: found {config.batch_size}, expected at most the '
      f'{len(split.train)} files that per_class={config.per_class} leaves.'
    )
  return task.Task(
    init=_init,
    loss=_loss,
    batch=functools.partial(_batch, split.train, config),
    tx=optimizers.warm_adamw(config.rate, steps=config.steps),
    steps=config.steps,
    evaluate=functools.partial(_evaluate, config),
    apply=magika_cnn.apply,
    inputs=np.stack([magika_cnn.read(s.path) for s in split.train[:16]]),
    weights='(conv|head)/kernel',
    facts={
      'model': 'magika 1.0.3, standard_v3_3',
      'model_sha256': magika_cnn.PINNED['model.onnx'],
      'python': platform.python_version(),
      'files': len(split.held_out),
      'types': len({s.label for s in split.held_out}),
      'train_files': len(split.train),
      'train_sha256': labelled_files.digest(split.train),
      'data_sha256': labelled_files.digest(split.held_out),
      'manifest': labelled_files.manifest(split.held_out),
    },
    about='The CNN of Magika 1.0.3, pretrained: its figure is the share of '
    f'{len(split.held_out):,} installed files whose type it names as their extension does.',
  )


@functools.cache
def _features(sample):
  return magika_cnn.read(sample.path)


def _batch(train, config, step):
  """Features of files: every one once an epoch."""
  size = config.batch_size
  epoch, position = divmod(step, len(train) // size)
  order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
  chosen = order[position * size : (position + 1) * size]
  return np.stack([_features(train[i]) for i in chosen])


def _loss(params, batch, key):
  """Hinton et al. (arXiv:1503.02531) at temperature 1: the dense model is the teacher."""
  del key  # Nothing here is random.
  wanted = jax.nn.log_softmax(magika_cnn.apply(magika_cnn.load(), batch))
  found = jax.nn.log_softmax(magika_cnn.apply(params, batch))
  loss = (jnp.exp(wanted) * (wanted - found)).sum(-1).mean()
  return loss, {'agreement': (wanted.argmax(-1) == found.argmax(-1)).mean()}


def _init():
  """The pretrained weights, as values that XLA does not fold when this is traced.

  Else it would compute at compile time, slowly, what a transform makes of them.
  """
  return jax.lax.optimization_barrier(magika_cnn.load())


@functools.cache
def _forward():
  return jax.jit(jsp.dispatch(magika_cnn.apply))


def _guesses(params, samples):
  """The most probable type of each file, `[files]` int."""
  out = []
  for start in range(0, len(samples), _BATCH):
    chosen = [_features(sample) for sample in samples[start : start + _BATCH]]
    # The last batch is filled up, so that there is one program.
    ids = np.stack(chosen + [chosen[0]] * (_BATCH - len(chosen)))
    out.append(np.asarray(_forward()(params, ids)).argmax(-1)[: len(chosen)])
  return np.concatenate(out)


@functools.cache
def _dense_guesses(samples):
  return _guesses(magika_cnn.load(), samples)


def _evaluate(config, params):
  samples = labelled_files.load(config.per_class).held_out
  known = magika_cnn.labels()
  wanted = np.array([known.index(sample.label) for sample in samples])
  dense, found = _dense_guesses(samples), _guesses(params, samples)
  hits, dense_hits = found == wanted, dense == wanted
  low, high = bootstrap.paired(hits, dense_hits, resamples=config.resamples, seed=config.seed)
  return {
    'accuracy': float(hits.mean()),
    'agreement': float((found == dense).mean()),
    'dense_accuracy': float(dense_hits.mean()),
    'difference': float(hits.mean() - dense_hits.mean()),
    'low': low,
    'high': high,
  }
