"""Two small image classifiers, one a framework each, as pure functions of their parameters.

Both see 8 by 8 grey images in [0, 1] and answer with ten logits. Nothing in them knows that it will
be compressed: that is the point.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from flax import nnx


class Model(NamedTuple):
  """A model as the library sees one: a tree of parameters and a function.

  Attributes:
    params: the model's own container.
    apply: `(params, images [batch, 8, 8])` to logits `[batch, 10]`.
    every: pattern of all matrices and filters.
    inner: pattern of those whose reduction is long: neither first nor last layer.
    portrait: name of the weight worth a picture.
    about: a sentence for the report.
  """

  params: Any
  apply: Callable
  every: str
  inner: str
  portrait: str
  about: str


class Cnn(linen.Module):
  """Two convolutions, a hidden layer and a head: 72 thousand weights."""

  @linen.compact
  def __call__(self, images):
    """Maps `[batch, 8, 8]` to logits `[batch, 10]`."""
    x = images[..., None]
    x = linen.relu(linen.Conv(16, (3, 3), name='stem')(x))
    x = linen.relu(linen.Conv(32, (3, 3), name='conv')(x))
    x = linen.avg_pool(x, (2, 2), strides=(2, 2))
    x = linen.relu(linen.Dense(128, name='hidden')(x.reshape(len(x), -1)))
    return linen.Dense(10, name='head')(x)


class Block(nnx.Module):
  """A transformer block: attention and an MLP, normalized before, added after."""

  def __init__(self, width, heads, *, rngs):
    self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
    self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
    self.mlp_in = nnx.Linear(width, 2 * width, rngs=rngs)
    self.mlp_out = nnx.Linear(2 * width, width, rngs=rngs)

  def __call__(self, x):
    """Maps `[batch, tokens, width]` to the same shape."""
    x = x + self.attention(self.attention_norm(x))
    return x + self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x))))


class Transformer(nnx.Module):
  """A token a row of pixels, two blocks, a mean and a head: 39 thousand weights."""

  def __init__(self, *, width=48, heads=4, rngs):
    self.embed = nnx.Linear(8, width, rngs=rngs)
    self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, 8, width)))
    self.first = Block(width, heads, rngs=rngs)
    self.second = Block(width, heads, rngs=rngs)
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.head = nnx.Linear(width, 10, rngs=rngs)

  def __call__(self, images):
    """Maps `[batch, 8, 8]` to logits `[batch, 10]`."""
    x = self.embed(images) + self.position[...]
    return self.head(self.norm(self.second(self.first(x))).mean(1))


def cnn(seed: int) -> Model:
  """Returns the convolutional network of Flax linen, freshly initialized."""
  module = Cnn()
  params = module.init(jax.random.key(seed), jnp.zeros((1, 8, 8)))['params']
  return Model(
    params=params,
    apply=lambda params, images: module.apply({'params': params}, images),
    every='(.*/)?kernel',
    inner='(conv|hidden)/kernel',
    portrait='hidden/kernel',
    about='Flax linen. Two 3×3 convolutions, a hidden layer of 128 and a head.',
  )


def transformer(seed: int) -> Model:
  """Returns the transformer of Flax NNX, freshly initialized."""
  graph, params, rest = nnx.split(Transformer(rngs=nnx.Rngs(seed)), nnx.Param, ...)
  return Model(
    params=params,
    apply=lambda params, images: nnx.merge(graph, params, rest)(images),
    every='(.*/)?kernel',
    inner='(first|second)/.*/?kernel',
    portrait='second/mlp_in/kernel',
    about='Flax NNX. A token a row of pixels, two pre-norm blocks 48 wide with four heads, a head.',
  )


MODELS = {'cnn': cnn, 'transformer': transformer}
