"""Three models whose training steps are timed: bound by the optimizer, by convolutions, by both.

An MLP 784-512-512-10 at batch 128 (0.67 million weights), a residual CNN on 32 x 32 pixels at batch
16 (0.3 million) and a transformer of four layers, 256 wide, on 4 sequences of 128 (3.7 million).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen


class Case(NamedTuple):
  """What a training step needs: `loss(params, *batch)`.

  `weights` is the pattern of what is pruned, `fours` of those whose reduction axis 4 divides.
  """

  params: Any
  loss: Callable
  batch: tuple
  weights: str = '.*/(kernel|embedding)'
  fours: str = '.*/(kernel|embedding)'


class _Mlp(linen.Module):
  @linen.compact
  def __call__(self, x):
    for width in (512, 512):
      x = linen.relu(linen.Dense(width)(x))
    return linen.Dense(10)(x)


class _Cnn(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.Conv(32, (3, 3))(x)
    for width, stride in ((32, 1), (64, 2), (128, 2)):
      skip = linen.Conv(width, (1, 1), strides=stride)(x)
      x = linen.relu(linen.GroupNorm(8)(linen.Conv(width, (3, 3), strides=stride)(x)))
      x = linen.relu(linen.GroupNorm(8)(linen.Conv(width, (3, 3))(x)) + skip)
    return linen.Dense(10)(x.mean((1, 2)))


class _Transformer(linen.Module):
  @linen.compact
  def __call__(self, tokens):
    x = linen.Embed(1000, 256)(tokens)
    causal = linen.make_causal_mask(tokens)
    for _ in range(4):
      x += linen.SelfAttention(4)(linen.LayerNorm()(x), mask=causal)
      x += linen.Dense(256)(linen.gelu(linen.Dense(1024)(linen.LayerNorm()(x))))
    return linen.Dense(1000)(linen.LayerNorm()(x))


def _case(module, inputs, labels):
  def loss(params, inputs, labels):
    logits = module.apply({'params': params}, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  return Case(module.init(jax.random.key(0), inputs)['params'], loss, (inputs, labels))


def mlp(wrap: Callable = lambda module: module) -> Case:
  """Returns the MLP on random inputs; `wrap` changes the module first, as Qwix does."""
  labels = jnp.arange(128) % 10
  return _case(wrap(_Mlp()), jax.random.normal(jax.random.key(1), (128, 784)), labels)


def cnn() -> Case:
  """Returns the residual CNN on random images."""
  labels = jnp.arange(16) % 10
  case = _case(_Cnn(), jax.random.normal(jax.random.key(1), (16, 32, 32, 3)), labels)
  return case._replace(fours='(?!Conv_0/).*/kernel')  # the stem reduces over 27


def transformer() -> Case:
  """Returns the transformer on random tokens."""
  tokens = jax.random.randint(jax.random.key(1), (4, 128), 0, 1000)
  return _case(_Transformer(), tokens, jnp.roll(tokens, -1, 1))


CASES = {'mlp': mlp, 'cnn': cnn, 'transformer': transformer}
