"""Question: what does compression cost a language model, byte by byte?

A causal decoder learns to predict the next byte of Python's standard library, the source that every
machine which can run this carries. The files are split by the hash of their content, one in ten
held out; the figures are the top-1 accuracy of the next byte and the bits a byte costs, on held-out
windows. The same file scales from a test to a pod: '1b' is what `launch.pod plan` compiles.

Command: python -m launch.run --experiment=language --transform="rigl(0.9)"
Expected: dense, seed 0: accuracy 0.601 and 2.17 bits a byte after 400 steps, 189 CPU-seconds (two
minutes on two idle cores; x86_64, Python 3.11.7, jax 0.10.2, 2026-11-22). 'smoke' takes 12
CPU-seconds and reaches 0.32; 'bench' is 0.14 CPU-seconds a step; '110m' and '1b' are for TPUs.
Source: Al-Rfou et al., "Character-Level Language Modeling with Deeper Self-Attention"
(arXiv:1808.04444), for byte-level decoders; the corpus is CPython's `Lib` (PSF licence).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse as jsp
from experiments import checks
from experiments import corpus
from experiments import decoder
from experiments import optimizers
from experiments import task

_DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes a run.

  Attributes:
    seed: of weights and order of the data, 0 or more; the split is always the same.
    steps: optimizer steps; 0 only compresses.
    batch_size: windows a step.
    width: of the residual stream.
    layers: blocks.
    heads: of attention; they divide `width` into even parts.
    mlp: hidden width of the gated MLP.
    sequence: bytes of context; a window is one longer.
    vocabulary: rows of the embedding, at least 256; more is the size of a subword model.
    dtype: of the products, 'float32' or 'bfloat16'; weights are always float32.
    remat: recompute blocks in the backward pass to save memory.
    rate: peak learning rate.
    weight_decay: of AdamW.
    corpus_bytes: about how much training text to read.
    evaluation_windows: held-out windows at most.
  """

  seed: int = 0
  steps: int = 400
  batch_size: int = 16
  width: int = 128
  layers: int = 3
  heads: int = 8
  mlp: int = 384
  sequence: int = 128
  vocabulary: int = 256
  dtype: str = 'float32'
  remat: bool = False
  rate: float = 3e-3
  weight_decay: float = 1e-2
  corpus_bytes: int = 40_000_000
  evaluation_windows: int = 256

  def __post_init__(self):
    for name in ('batch_size', 'layers', 'heads', 'sequence', 'corpus_bytes', 'evaluation_windows'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}.')
    if self.steps < 0:
      raise ValueError(f'steps must be at least 0, got {self.steps}.')
    if not 0 <= self.seed < 2**31:
      raise ValueError(f'seed must be at least 0 and less than 2**31, got {self.seed}.')
    if self.width < 1 or self.width % (2 * self.heads):
      raise ValueError(
        f'width must be a positive multiple of 2 * heads = {2 * self.heads}, got {self.width}.'
      )
    for name in ('width', 'mlp'):
      if getattr(self, name) < 4 or getattr(self, name) % 4:
        raise ValueError(
          f'{name} must be a multiple of 4, as 2:4 pruning needs it, got {getattr(self, name)}.'
        )
    if self.vocabulary < 256:
      raise ValueError(f'vocabulary must be at least 256, a row a byte, got {self.vocabulary}.')
    if self.dtype not in _DTYPES:
      raise ValueError(f'dtype must be one of {_DTYPES}, got {self.dtype!r}.')
    if not 0 < self.rate < math.inf:
      raise ValueError(f'rate must be positive and finite, got {self.rate}.')
    if not 0 <= self.weight_decay < math.inf:
      raise ValueError(f'weight_decay must be at least 0 and finite, got {self.weight_decay}.')


_SIZES = {
  '': {},
  'smoke': dict(
    steps=30,
    width=64,
    layers=2,
    mlp=128,
    sequence=64,
    corpus_bytes=1_000_000,
    evaluation_windows=64,
  ),
  'bench': dict(steps=200, batch_size=8, layers=2, corpus_bytes=4_000_000, evaluation_windows=64),
  '110m': dict(
    steps=20_000,
    batch_size=64,
    width=1024,
    layers=8,
    heads=16,
    mlp=3072,
    sequence=1024,
    dtype='bfloat16',
    remat=True,
    rate=6e-4,
  ),
  '1b': dict(
    steps=50_000,
    batch_size=256,
    width=2048,
    layers=18,
    heads=16,
    mlp=5632,
    sequence=2048,
    vocabulary=32_000,
    dtype='bfloat16',
    remat=True,
    rate=3e-4,
  ),
}


def get_config(arg: str = '') -> Config:
  """Returns the configuration of a size.

  Args:
    arg: `''`, `'smoke'`, `'bench'`, `'110m'` or `'1b'`; what they are is said above.

  Raises:
    ValueError: for any other word.

  Example:
    >>> get_config('1b').layers
    18
  """
  checks.size('language', arg, _SIZES)
  return Config(**_SIZES[arg])


def build(config: Config) -> task.Task:
  """Returns the model, its data and its measure.

  Args:
    config: from `get_config`.

  Raises:
    ValueError: there is no text for so long a window.
  """
  text = corpus.load(config.corpus_bytes)
  model = decoder.Decoder(
    width=config.width,
    layers=config.layers,
    heads=config.heads,
    mlp=config.mlp,
    vocabulary=config.vocabulary,
    dtype=config.dtype,
    remat=config.remat,
  )
  length = config.sequence + 1
  apply = lambda params, tokens: decoder.apply(model, params, tokens)
  init = lambda: decoder.init(model, config.seed)
  size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(init)))

  def loss(params, batch, key):
    del key  # The data is large and the runs short: there is no dropout.
    bits, right = _scores(apply(params, batch[:, :-1]), batch[:, 1:])
    return bits.mean() * math.log(2), {'bits_per_byte': bits.mean(), 'accuracy': right.mean()}

  return task.Task(
    init=init,
    loss=loss,
    batch=lambda step: corpus.windows(
      text.train, length=length, count=config.batch_size, seed=config.seed, step=step
    ),
    tx=optax.chain(
      optax.clip_by_global_norm(1.0),
      optimizers.warm_adamw(config.rate, steps=config.steps, weight_decay=config.weight_decay),
    ),
    steps=config.steps,
    evaluate=_evaluation(
      apply,
      corpus.spread(text.held_out, length=length, count=config.evaluation_windows),
      config.batch_size,
    ),
    apply=apply,
    inputs=corpus.spread(text.held_out, length=config.sequence, count=1),
    weights='blocks/.*/kernel',
    specs=lambda params: decoder.specs(model),
    facts={**text.facts, 'parameters': size},
    about=f'A causal decoder of {size:,} weights, bytes of the Python standard library.',
  )


def _scores(logits, targets):
  """Bits that each next byte costs, and whether it was the likeliest."""
  targets = targets.astype(jnp.int32)
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
  return nats / math.log(2), (logits.argmax(-1) == targets).astype(jnp.float32)


def _evaluation(apply, windows, batch_size):
  """A function of arrays or formats; sums come out of the device, so any mesh may hold them."""
  dispatched = jsp.dispatch(apply)

  @jax.jit
  def sums(params, batch):
    bits, right = _scores(dispatched(params, batch[:, :-1]), batch[:, 1:])
    return bits.sum(), right.sum()

  size = min(batch_size, len(windows))
  # Whole batches only: another shape would be another program.
  batches = windows[: len(windows) // size * size].reshape(-1, size, windows.shape[1])

  def evaluate(params):
    found = np.array([[float(x) for x in sums(params, batch)] for batch in batches])
    bits, right = found.sum(0) / (batches.size - batches.shape[0] * size)
    return {'accuracy': float(right), 'bits_per_byte': float(bits)}

  return evaluate
