"""A causal decoder as pure functions of a tree of weights, from a notebook's size to a pod's.

RMSNorm before each half block (Zhang and Sennrich, arXiv:1910.07467), rotary positions (Su et al.,
arXiv:2104.09864), a gated MLP (Shazeer, arXiv:2002.05202), no biases. The blocks are one stack that
a scan walks, so compilation costs the same for 2 layers as for 18. Nothing in it knows that it will
be compressed; on a mesh it says where its activations belong, elsewhere that says nothing.

Letters: B batch, S sequence, D width, H heads, K head width, F MLP width, V vocabulary, L layers.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec


class Decoder(NamedTuple):
  """The static half of the model.

  Attributes:
    width: D.
    layers: L.
    heads: H, which divides D into even parts.
    mlp: F.
    vocabulary: V.
    dtype: of the products; weights, norms, softmax and logits are float32.
    remat: recompute each block in the backward pass instead of keeping what is inside it.
  """

  width: int
  layers: int
  heads: int
  mlp: int
  vocabulary: int = 256
  dtype: str = 'float32'
  remat: bool = False


# Each kernel: its shape after the layer axis, how many leading axes reduce, and its spec. Large
# axes are split over `data` too: every device stores a part and gathers a layer when it needs it.
def _kernels(d: Decoder):
  k = d.width // d.heads
  heads_out = ((d.width, d.heads, k), 1, PartitionSpec(None, 'data', 'model', None))
  widen = ((d.width, d.mlp), 1, PartitionSpec(None, 'data', 'model'))
  return {
    'query': heads_out,
    'key': heads_out,
    'value': heads_out,
    'out': ((d.heads, k, d.width), 2, PartitionSpec(None, 'model', None, 'data')),
    'gate': widen,
    'up': widen,
    'down': ((d.mlp, d.width), 1, PartitionSpec(None, 'model', 'data')),
  }


def init(decoder: Decoder, seed: int) -> dict[str, Any]:
  """Draws the weights; traceable.

  Args:
    decoder: what to build.
    seed: 0 or more.

  Returns:
    `embedding [V, D]`, `blocks` of kernels and norm scales that lead with L, `norm/scale [D]` and
    `head/kernel [D, V]`, float32.

  Example:
    >>> params = init(Decoder(width=8, layers=2, heads=2, mlp=16), seed=0)
    >>> params['blocks']['query']['kernel'].shape, params['blocks']['down']['kernel'].shape
    ((2, 8, 2, 4), (2, 16, 8))
  """
  kernels = _kernels(decoder)
  keys = iter(jax.random.split(jax.random.key(seed), len(kernels) + 2))
  normal = lambda shape, deviation: deviation * jax.random.normal(next(keys), shape)
  ones = lambda *shape: {'scale': jnp.ones(shape)}
  blocks = {}
  for name, (shape, reduced, _) in kernels.items():
    deviation = 1 / math.sqrt(math.prod(shape[:reduced]))
    if name in ('out', 'down'):
      # 2 L of these are summed on the residual stream (GPT-2's scaling).
      deviation /= math.sqrt(2 * decoder.layers)
    blocks[name] = {'kernel': normal((decoder.layers, *shape), deviation)}
  blocks['attention_norm'] = ones(decoder.layers, decoder.width)
  blocks['mlp_norm'] = ones(decoder.layers, decoder.width)
  head = normal((decoder.width, decoder.vocabulary), 1 / math.sqrt(decoder.width))
  return {
    'embedding': normal((decoder.vocabulary, decoder.width), 1.0),
    'blocks': blocks,
    'norm': ones(decoder.width),
    'head': {'kernel': head},
  }


def specs(decoder: Decoder) -> dict[str, Any]:
  """Where the weights belong on a mesh of axes `data` and `model`: a tree like `init`'s.

  Args:
    decoder: as in `init`.

  Example:
    >>> tuple(specs(Decoder(width=8, layers=2, heads=2, mlp=16))['blocks']['up']['kernel'])
    (None, 'data', 'model')
  """
  replicated = {'scale': PartitionSpec()}
  return {
    # Rows over `data`, so that gathering them leaves a lookup that no device needs others for.
    'embedding': PartitionSpec('data', 'model'),
    'blocks': {
      **{name: {'kernel': spec} for name, (_, _, spec) in _kernels(decoder).items()},
      'attention_norm': replicated,
      'mlp_norm': replicated,
    },
    'norm': replicated,
    'head': {'kernel': PartitionSpec('data', 'model')},
  }


def apply(decoder: Decoder, params: Any, tokens: jax.Array) -> jax.Array:
  """Maps tokens to logits of the next.

  Args:
    decoder: as in `init`.
    params: as `init` returns them.
    tokens: `[B, S]` integers under V.

  Returns:
    `[B, S, V]` float32.
  """
  place = functools.partial(_place, _mesh_of((params, tokens)))
  cast = lambda w: w.astype(decoder.dtype)
  x = jnp.take(params['embedding'], tokens.astype(jnp.int32), axis=0, mode='clip')
  x = place(cast(x), 'data')
  positions = _rotations(tokens.shape[1], decoder.width // decoder.heads)

  def block(x, weights):
    w = {name: cast(leaves['kernel']) for name, leaves in weights.items() if 'kernel' in leaves}
    y = _norm(x, weights['attention_norm']['scale'])
    q, k, v = (
      place(jnp.einsum('bsd,dhk->bshk', y, w[name]), 'data', None, 'model')
      for name in ('query', 'key', 'value')
    )
    y = place(_attention(_rotate(q, positions), _rotate(k, positions), v), 'data', None, 'model')
    x = place(x + jnp.einsum('bshk,hkd->bsd', y, w['out']), 'data')
    y = _norm(x, weights['mlp_norm']['scale'])
    y = place(jax.nn.silu(y @ w['gate']) * (y @ w['up']), 'data', None, 'model')
    return place(x + y @ w['down'], 'data'), None

  x, _ = jax.lax.scan(jax.checkpoint(block) if decoder.remat else block, x, params['blocks'])
  x = _norm(x, params['norm']['scale'])
  logits = jnp.einsum(
    'bsd,dv->bsv', x, cast(params['head']['kernel']), preferred_element_type=jnp.float32
  )
  return place(logits, 'data', None, 'model')


def _attention(q, k, v):
  """Causal softmax attention of `[B, S, H, K]`."""
  scores = jnp.einsum('bshk,bthk->bhst', q, k, preferred_element_type=jnp.float32)
  s = q.shape[1]
  causal = jnp.tril(jnp.ones((s, s), bool))
  scores = jnp.where(causal[None, None], scores / math.sqrt(q.shape[-1]), -jnp.inf)
  return jnp.einsum('bhst,bthk->bshk', jax.nn.softmax(scores).astype(v.dtype), v)


def _norm(x, scale):
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + 1e-6)
  return (y * scale[None, None]).astype(x.dtype)


def _rotations(length, width):
  """Cosines and sines `[1, S, 1, K / 2]` of rotary positions."""
  rates = 10_000.0 ** -jnp.linspace(0.0, 1.0, width // 2, endpoint=False)
  angles = (jnp.arange(length)[:, None] * rates[None])[None, :, None]
  return jnp.cos(angles), jnp.sin(angles)


def _rotate(x, positions):
  cos, sin = positions
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _mesh_of(tree):
  """The mesh that traced values are on, or the one in context, or None."""
  meshes = [getattr(jax.typeof(x).sharding, 'mesh', None) for x in jax.tree.leaves(tree)]
  meshes.append(jax.sharding.get_abstract_mesh())
  return next((mesh for mesh in meshes if mesh is not None and mesh.size > 1), None)


def _place(mesh, x, *axes):
  """Pins an activation to mesh axes, leaving out those that the mesh lacks or cannot split."""
  if mesh is None:
    return x
  fits = lambda axis, size: axis in mesh.shape and size % mesh.shape[axis] == 0
  spec = [axis if axis and fits(axis, size) else None for axis, size in zip(axes, x.shape)]
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
