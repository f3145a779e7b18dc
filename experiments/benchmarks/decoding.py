"""Question: how many tokens a second does a packed transformer decode, beside the dense one?

A stock flax transformer over bytes, 6 layers 512 wide, decodes one token at a time at batch 1 with
a key-value cache. Nothing in it knows of compression: weights are pruned to blocks or quantized,
packed, laid out by `jsp.prepare`, and run through `jsp.dispatch`. The dense model runs with its
kernels as flax stores them and transposed, and the faster of the two is what others are compared
with. Time is CPU time of the process; rounds interleave, ratios are medians over rounds. Then comes
the largest difference of the logits to those of the densified weights, as a share of the largest.

Command: taskset -c 1 python -m experiments.benchmarks.decoding
Weights that no kernel multiplies faster than dense are held dense by `jsp.fastest`.
Peer: the dense model, the faster of two layouts. Limits: 2.5 times its tokens a second for blocks
of 32 at a density of 1/8, 2 times for int4 by the native kernel.
"""

import statistics
import time

import jax
import jax.numpy as jnp
from flax import linen

import jaxsparse as jsp

_WIDTH, _LAYERS, _LENGTH = 512, 6, 64
_TOKENS, _ROUNDS = 20, 9
_WEIGHTS = '(.*/(query|key|value|out)|(up|down)_.*)/kernel'
_SIDES = {
  'blocks of 32, density 1/8': 'magnitude(0.875, pattern=balanced_blocks(32, 32))',
  'blocks of 32, density 1/4': 'magnitude(0.75, pattern=balanced_blocks(32, 32))',
  'int8': "quantize('int8')",
  'int4, groups of 128': "quantize('int4', group=128)",
  '2:4': 'nm(2, 4)',
}


class Transformer(linen.Module):
  """Pre-norm blocks over bytes, decoding with flax's own cache."""

  @linen.compact
  def __call__(self, tokens):
    """Maps `[batch, 1]` bytes to logits `[batch, 1, 256]` of the next."""
    x = linen.Embed(256, _WIDTH, name='embed')(tokens)
    for i in range(_LAYERS):
      attention = linen.MultiHeadDotProductAttention(
        num_heads=8, use_bias=False, decode=True, name=f'attention_{i}'
      )
      x = x + attention(linen.LayerNorm()(x))
      y = linen.LayerNorm()(x)
      h = linen.gelu(linen.Dense(4 * _WIDTH, use_bias=False, name=f'up_{i}')(y))
      x = x + linen.Dense(_WIDTH, use_bias=False, name=f'down_{i}')(h)
    return linen.Dense(256, use_bias=False, name='head')(linen.LayerNorm()(x))


def start(model):
  """Returns fresh params and an empty cache of `_LENGTH` positions."""
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, _LENGTH), jnp.int32))
  return variables['params'], jax.tree.map(jnp.zeros_like, variables['cache'])


def stepped(model, restore=lambda params: params):
  """Returns `(params, cache, token) -> (logits, cache)`, compiled."""

  def step(params, cache, token):
    variables = {'params': restore(params), 'cache': cache}
    logits, changed = model.apply(variables, token, mutable=['cache'])
    return logits, changed['cache']

  return jax.jit(jsp.dispatch(step))


def _turn(params):
  """Kernels of two axes transposed; attention's three would be copied at every step."""
  is_kernel = lambda path, x: path[-1].key == 'kernel' and x.ndim == 2
  return jax.tree_util.tree_map_with_path(lambda p, x: x.T if is_kernel(p, x) else x, params)


def decode(step, params, cache, tokens):
  """Decodes greedily and returns the logits of the last step."""
  token = jnp.zeros((1, 1), jnp.int32)
  for _ in range(tokens):
    logits, cache = step(params, cache, token)
    token = logits.argmax(-1).astype(jnp.int32)
  return jax.block_until_ready(logits)


def seconds(side, cache) -> float:
  """CPU seconds a token."""
  started = time.process_time()
  decode(*side, cache, _TOKENS)
  return (time.process_time() - started) / _TOKENS


def main():
  """Prints a line for each way."""
  model = Transformer()
  params, cache = start(model)
  plain = stepped(model)
  sides = {
    'dense': (plain, params),
    'dense, transposed': (stepped(model, _turn), _turn(params)),
  }
  errors, sizes = {}, {}
  token = jnp.full((1, 1), 65, jnp.int32)
  for name, text in _SIDES.items():
    transform = jsp.at(_WEIGHTS, jsp.parse(text))
    stored = transform.pack(*transform.init(params))
    ready = jsp.prepare(stored)
    sides[name] = (stepped(model), jsp.fastest(ready, jsp.measure_costs(ready, 1), rows=1))
    sizes[name] = jsp.nbytes(stored)
    expected = plain(jsp.densify(stored), cache, token)[0]
    found = sides[name][0](sides[name][1], cache, token)[0]
    errors[name] = float(jnp.abs(found - expected).max() / jnp.abs(expected).max())
  for side in sides.values():
    decode(*side, cache, 1)
  rounds = [{n: seconds(side, cache) for n, side in sides.items()} for _ in range(_ROUNDS)]
  times = {n: [r[n] for r in rounds] for n in sides}
  dense = min((times['dense'], times['dense, transposed']), key=statistics.median)
  print('| weights | tokens a CPU second | times dense | bytes | error |\n|---|---|---|---|---|')
  for name, spent in times.items():
    tokens = 1 / statistics.median(spent)
    faster = statistics.median(d / t for d, t in zip(dense, spent))
    size = sizes.get(name, jsp.nbytes(params)) / jsp.nbytes(params)
    print(f'| {name} | {tokens:.0f} | {faster:.2f} | {size:.3f} | {errors.get(name, 0):.1e} |')
  print(f'\n{_ROUNDS} rounds. {jsp.backends()["native"]}')


if __name__ == '__main__':
  main()
