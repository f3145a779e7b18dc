"""Question: is a physically shrunk model as fast as one built at that size from the start?

Half of the channels of a CNN of 64 or 128, and half of the heads and MLP neurons of a transformer,
are zeroed and removed. Three compiled forward passes run on the same batch: the shrunk model, the
stock model built small, and the dense one. Time is CPU time of all threads; rounds interleave and
ratios are medians over rounds.

Command: python -m experiments.benchmarks.shrunk_speed
Peer: the model built at that size. Limits: 1.15 of it; the CNN at batch 8 at most 0.4 of the dense
model, which is 2.5 times as fast.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from flax import linen

import jaxsparse as jsp

_CALLS, _ROUNDS = 20, 9


class Cnn(linen.Module):
  """Convolutions with BatchNorm, a flattening and two dense layers, all `width` times 16."""

  width: int

  @linen.compact
  def __call__(self, x):
    """Maps `[batch, 16, 16, 3]` to logits `[batch, 10]`."""
    for name in ('first', 'second', 'third'):
      x = linen.Conv(16 * self.width, (3, 3), name=name)(x)
      x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
      x = linen.avg_pool(x, (2, 2), strides=(2, 2))
    x = linen.relu(linen.Dense(32 * self.width, name='hidden')(x.reshape(len(x), -1)))
    return linen.Dense(10, name='head')(x)


class Transformer(linen.Module):
  """Two pre-norm blocks 64 wide with `2 * width` heads of 16 and `64 * width` neurons."""

  width: int

  @linen.compact
  def __call__(self, x):
    """Maps `[batch, tokens, 64]` to logits `[batch, 10]`."""
    for i in range(2):
      attention = linen.MultiHeadDotProductAttention(
        num_heads=2 * self.width, qkv_features=32 * self.width, name=f'attention_{i}'
      )
      x = x + attention(linen.LayerNorm()(x))
      h = linen.Dense(64 * self.width, name=f'up_{i}')(linen.LayerNorm()(x))
      x = x + linen.Dense(64, name=f'down_{i}')(linen.gelu(h))
    return linen.Dense(10, name='head')(x.mean(1))


def halved(path, x):
  """The weight at a path with every second channel, head or neuron zero."""
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  if name.endswith('out/kernel'):
    return x.at[::2].set(0)
  if name.endswith('kernel') and any(part in name for part in _CUT):
    return x.at[..., ::2].set(0)
  return x


_CUT = ('first', 'second', 'third', 'hidden', 'up_')


def seconds(fn, params, x) -> float:
  """CPU seconds a call."""
  started = time.process_time()
  for _ in range(_CALLS):
    out = fn(params, x)
  jax.block_until_ready(out)
  return (time.process_time() - started) / _CALLS


def compare(name, build, x, width=4):
  """Prints the ratios of one model of a width, and of half of it."""
  dense = build(width)
  params = jax.tree_util.tree_map_with_path(halved, jax.jit(dense.init)(jax.random.key(0), x))
  params = jsp.silence(dense.apply, params, x)
  shrunk = jsp.shrink(dense.apply, params, x)
  built = build(width // 2)
  small = jax.jit(built.init)(jax.random.key(0), x)
  sizes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
  assert sizes(small) == sizes(shrunk.params), 'the peer has another size'
  sides = {
    'shrunk': (jax.jit(shrunk.apply), shrunk.params),
    'built': (jax.jit(built.apply), small),
    'dense': (jax.jit(dense.apply), params),
  }
  off = jnp.abs(sides['shrunk'][0](shrunk.params, x) - sides['dense'][0](params, x)).max()
  for fn, weights in sides.values():
    seconds(fn, weights, x)
  rounds = [{k: seconds(*v, x) for k, v in sides.items()} for _ in range(_ROUNDS)]
  for peer in ('built', 'dense'):
    ratio = statistics.median(r['shrunk'] / r[peer] for r in rounds)
    print(f'{name}: time of shrunk over {peer}: {ratio:.3f}')
  print(f'{name}: largest difference to the masked model: {off:.2g}')


def main():
  """Prints three lines a model."""
  for width, batch in ((4, 8), (4, 32), (8, 8), (8, 32)):
    x = jax.random.normal(jax.random.key(1), (batch, 16, 16, 3))
    compare(f'cnn of {16 * width} channels, batch {batch}', Cnn, x, width)
  compare('transformer', Transformer, jax.random.normal(jax.random.key(1), (16, 32, 64)))


if __name__ == '__main__':
  main()
