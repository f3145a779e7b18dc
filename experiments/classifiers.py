"""Four image classifiers in Flax linen, for square grey images of 8 pixels and more.

What a transform compresses by default (`Model.weights`) leaves out the head, and a first layer that
reduces over a handful of pixels. Every other reduction axis is a multiple of 4, so 2:4 fits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen
from jax.sharding import PartitionSpec as P

_CLASSES = 10


class Model(NamedTuple):
  """A classifier as pure functions.

  Attributes:
    init: `(seed) -> params`, traceable.
    apply: `(params, images [batch, side, side])` to logits `[batch, 10]`.
    weights: pattern of the weights worth compressing.
    specs: `params -> tree of PartitionSpec` over a mesh axis `model`.
    about: a sentence for the report.
  """

  init: Callable[[int], Any]
  apply: Callable[[Any, jax.Array], jax.Array]
  weights: str
  specs: Callable[[Any], Any]
  about: str


class Cnn(linen.Module):
  """Three convolutions, a hidden layer and a head."""

  width: int

  @linen.compact
  def __call__(self, images):
    """Maps `[batch, side, side]` to logits `[batch, 10]`."""
    stride = 2 if images.shape[1] > 16 else 1
    x = images[..., None]
    x = linen.relu(linen.Conv(self.width, (3, 3), strides=stride, name='stem')(x))
    for index in range(2):
      x = linen.relu(linen.Conv(2 * self.width, (3, 3), name=f'conv_{index}')(x))
      x = linen.max_pool(x, (2, 2), strides=(2, 2))
    x = linen.relu(linen.Dense(8 * self.width, name='hidden')(x.reshape(len(x), -1)))
    return linen.Dense(_CLASSES, name='head')(x)


class Block(linen.Module):
  """A transformer block: attention and an MLP, normalized before, added after."""

  heads: int

  @linen.compact
  def __call__(self, x):
    """Maps `[batch, tokens, width]` to the same shape."""
    width = x.shape[-1]
    inside = linen.LayerNorm(name='attention_norm')(x)
    x = x + linen.MultiHeadDotProductAttention(self.heads, name='attention')(inside)
    inside = linen.Dense(2 * width, name='mlp_in')(linen.LayerNorm(name='mlp_norm')(x))
    return x + linen.Dense(width, name='mlp_out')(linen.gelu(inside))


class Vit(linen.Module):
  """Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv:2010.11929).

  With a mean over tokens, and a 3×3 convolution before patches are cut: Xiao et al., "Early
  Convolutions Help Transformers See Better" (arXiv:2106.14881). Four thousand images are few.
  """

  width: int
  patch: int
  blocks: int
  heads: int

  @linen.compact
  def __call__(self, images):
    """Maps `[batch, side, side]` to logits `[batch, 10]`."""
    count, window = images.shape[1] // self.patch, (self.patch, self.patch)
    x = linen.relu(linen.Conv(self.width // 4, (3, 3), name='stem')(images[..., None]))
    x = linen.Conv(self.width, window, strides=window, name='patches')(x)
    place = linen.initializers.normal(0.02)
    x = x.reshape(len(x), count**2, self.width)
    x = x + self.param('position', place, (1, count**2, self.width))
    for index in range(self.blocks):
      x = Block(self.heads, name=f'block_{index}')(x)
    x = linen.LayerNorm(name='norm')(x).mean(1)
    return linen.Dense(_CLASSES, name='head')(x)


class Mlp(linen.Module):
  """LeCun et al., "Gradient-Based Learning Applied to Document Recognition" (1998): LeNet-300-100.

  With ReLU, as the papers on pruning have it.
  """

  width: int

  @linen.compact
  def __call__(self, images):
    """Maps `[batch, side, side]` to logits `[batch, 10]`."""
    x = images.reshape(len(images), -1)
    x = linen.relu(linen.Dense(3 * self.width, name='hidden_0')(x))
    x = linen.relu(linen.Dense(self.width, name='hidden_1')(x))
    return linen.Dense(_CLASSES, name='head')(x)


class NormalizedMlp(linen.Module):
  """Equal hidden layers, each normalized before its ReLU.

  A norm makes a layer's function independent of its weight's scale, so that weight decay goes on
  changing the weight, and its rank (van Laarhoven, arXiv:1706.05350).
  """

  width: int
  layers: int

  @linen.compact
  def __call__(self, images):
    """Maps `[batch, side, side]` to logits `[batch, 10]`."""
    x = images.reshape(len(images), -1)
    for index in range(self.layers):
      x = linen.Dense(self.width, name=f'hidden_{index}')(x)
      x = linen.relu(linen.LayerNorm(name=f'norm_{index}')(x))
    return linen.Dense(_CLASSES, name='head')(x)


def normalized_mlp(*, side: int, width: int) -> Model:
  """Returns the multilayer perceptron with layer norms.

  Args:
    side: pixels of an image's side.
    width: of each of three hidden layers.
  """
  return _model(
    NormalizedMlp(width, layers=3),
    side=side,
    weights=r'hidden_\d/kernel',
    split=lambda path: P(None, 'model') if path[-2:] == ('hidden_0', 'kernel') else None,
    about=f'Flax linen. Three hidden layers of {width} with layer norms, and a head.',
  )


def mlp(*, side: int, width: int) -> Model:
  """Returns the multilayer perceptron; LeNet-300-100 at a width of 100.

  Args:
    side: pixels of an image's side.
    width: of the second hidden layer; the first has 3 times as many.
  """
  split = {'hidden_0': P(None, 'model'), 'hidden_1': P('model')}
  return _model(
    Mlp(width),
    side=side,
    weights=r'hidden_\d/kernel',
    split=lambda path: split.get(path[0]) if path[-1] == 'kernel' else None,
    about=f'Flax linen. Hidden layers of {3 * width} and {width}, and a head.',
  )


def cnn(*, side: int, width: int) -> Model:
  """Returns the convolutional network.

  Args:
    side: pixels of an image's side.
    width: channels after the first layer; the others have twice, the hidden layer 8 times.
  """
  split = {'conv': P(None, None, None, 'model'), 'hidden': P(None, 'model')}
  return _model(
    Cnn(width),
    side=side,
    weights=r'(conv_\d|hidden)/kernel',
    split=lambda path: split.get(path[0].split('_')[0]) if path[-1] == 'kernel' else None,
    about=f'Flax linen. Three 3×3 convolutions, {width} to {2 * width} wide, a hidden layer of '
    f'{8 * width} and a head.',
  )


def vit(*, side: int, width: int) -> Model:
  """Returns the vision transformer: 16 tokens of 2×2 pixels, or 49 of 4×4 where side is 28.

  Args:
    side: pixels of an image's side.
    width: of a token.
  """
  patch = 2 if side <= 8 else 4
  split = {
    'query': P(None, 'model'),
    'key': P(None, 'model'),
    'value': P(None, 'model'),
    'out': P('model'),
    'mlp_in': P(None, 'model'),
    'mlp_out': P('model'),
  }
  return _model(
    Vit(width, patch, blocks=2, heads=4),
    side=side,
    weights=r'block_\d/.*/kernel',
    split=lambda path: split.get(path[-2]) if path[-1] == 'kernel' else None,
    about=f'Flax linen. Patches of {patch}×{patch} pixels, two pre-norm blocks {width} wide with '
    'four heads, a mean over tokens and a head.',
  )


MODELS = {'cnn': cnn, 'mlp': mlp, 'normalized_mlp': normalized_mlp, 'vit': vit}


def _model(module, *, side, weights, split, about):
  def init(seed):
    return module.init(jax.random.key(seed), jnp.zeros((1, side, side)))['params']

  def specs(params):
    def spec(path, _):
      return split(tuple(part.key for part in path)) or P()

    return jax.tree_util.tree_map_with_path(spec, params)

  return Model(
    init=init,
    apply=lambda params, images: module.apply({'params': params}, images),
    weights=weights,
    specs=specs,
    about=about,
  )
