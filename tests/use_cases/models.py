"""Two stock models with BatchNorm and Dropout, in linen and in NNX, behind one loss."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx


class Problem(NamedTuple):
  """A model and a batch.

  `loss_fn(params, extra, key, batch) -> (loss, new extra)` trains; `apply_fn(params, x)` infers.
  """

  params: Any
  extra: Any
  loss_fn: Callable
  apply_fn: Callable
  batch: tuple[jax.Array, jax.Array]


def _batch():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(32, 6, 6, 4)).astype('float32')
  return jnp.asarray(x), jnp.asarray(x.mean((1, 2)).argmax(-1))


class LinenNet(nn.Module):
  """Convolution, BatchNorm, Dropout, two dense layers."""

  @nn.compact
  def __call__(self, x, *, train: bool):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
    x = nn.Dropout(0.1, deterministic=not train)(x.mean((1, 2)))
    return nn.Dense(4)(nn.relu(nn.Dense(16)(x)))


class NnxNet(nnx.Module):
  """The same in NNX."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(4, 8, (3, 3), rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.drop = nnx.Dropout(0.1, rngs=rngs)
    self.hidden = nnx.Linear(8, 16, rngs=rngs)
    self.head = nnx.Linear(16, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.conv(x)))
    return self.head(nnx.relu(self.hidden(self.drop(x.mean((1, 2))))))


def _xent(logits, labels):
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def linen() -> Problem:
  model, (x, y) = LinenNet(), _batch()
  variables = model.init(jax.random.key(0), x, train=False)

  def loss_fn(p, stats, key, batch):
    logits, new = model.apply({'params': p, 'batch_stats': stats}, batch[0], train=True,
                              mutable=['batch_stats'], rngs={'dropout': key})
    return _xent(logits, batch[1]), new['batch_stats']

  stats = variables['batch_stats']
  infer = lambda p, x: model.apply({'params': p, 'batch_stats': stats}, x, train=False)
  return Problem(variables['params'], stats, loss_fn, infer, (x, y))


def in_nnx() -> Problem:
  x, y = _batch()
  graphdef, params, rest = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param, ...)

  def loss_fn(p, rest, key, batch):
    del key   # the dropout stream is part of `rest`; a copy, as NNX mutates what it merged
    model = nnx.merge(graphdef, p, rest, copy=True)
    model.train()
    loss = _xent(model(batch[0]), batch[1])
    return loss, nnx.split(model, nnx.Param, ...)[2]

  def infer(p, x):
    model = nnx.merge(graphdef, p, rest, copy=True)
    model.eval()
    return model(x)

  return Problem(params, rest, loss_fn, infer, (x, y))


PROBLEMS = {'linen': linen, 'nnx': in_nnx}
