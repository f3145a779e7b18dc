"""Stock models of every library, small: `(fn, params, inputs)` each."""

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx


class _Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
    return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x)))), None


class _Transformer(nn.Module):
  @nn.compact
  def __call__(self, ids):
    embed = nn.Embed(11, 8)
    block = nn.scan(nn.remat(_Block), variable_axes={'params': 0}, split_rngs={'params': True},
                    length=3)
    x, _ = block()(embed(ids), None)
    return embed.attend(nn.Dense(8)(x))


class _Cnn(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=(2, 1))(x))
    x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2, padding='VALID')(x))
    return nn.Dense(5)(x.reshape(x.shape[0], -1))


class _NnxTransformer(nnx.Module):
  def __init__(self, rngs):
    self.embed = nnx.Embed(11, 8, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
    self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
    self.drop = nnx.Dropout(0.1, deterministic=True, rngs=rngs)
    self.out = nnx.Linear(8, 5, rngs=rngs)

  def __call__(self, ids):
    x = self.embed(ids)
    return self.out(self.drop(self.norm(x + self.attention(x))))


def transformer():
  """A scanned and rematerialized linen transformer with a tied embedding."""
  ids = jnp.arange(10).reshape(2, 5) % 11
  net = _Transformer()
  return net.apply, jax.jit(net.init)(jax.random.key(0), ids), ids


def cnn():
  """A linen CNN with strides, padding and groups."""
  x = jax.random.normal(jax.random.key(1), (2, 6, 5, 4))
  net = _Cnn()
  return net.apply, jax.jit(net.init)(jax.random.key(0), x), x


def nnx_transformer():
  """An NNX attention model with BatchNorm and Dropout."""
  graphdef, params, rest = nnx.split(_NnxTransformer(nnx.Rngs(0)), nnx.Param, ...)
  fn = lambda p, ids: nnx.merge(graphdef, p, rest)(ids)
  return fn, params, jnp.arange(10).reshape(2, 5) % 11


def haiku_net():
  """A haiku MLP and convolution."""
  def forward(x):
    x = jax.nn.relu(hk.Conv2D(4, 3)(x))
    return hk.nets.MLP([8, 3])(x.reshape(x.shape[0], -1))
  net = hk.without_apply_rng(hk.transform(forward))
  x = jax.random.normal(jax.random.key(1), (2, 4, 4, 4))
  return net.apply, jax.jit(net.init)(jax.random.key(0), x), x


def equinox_net():
  """An Equinox MLP, vmapped over the batch; its activation is a leaf of the tree."""
  model = eqx.nn.MLP(8, 4, 12, 2, key=jax.random.key(0))
  return lambda p, x: jax.vmap(p)(x), model, jax.random.normal(jax.random.key(1), (3, 8))


def bare():
  """Plain functions in odd orders."""
  keys = jax.random.split(jax.random.key(0), 4)
  params = {'left': jax.random.normal(keys[0], (8, 8)), 'right': jax.random.normal(keys[1], (8, 8)),
            'odd': jax.random.normal(keys[2], (2, 8, 4))}

  def fn(p, x):
    h = jnp.tanh(p['left'] @ x.T).T @ p['right']
    return jnp.einsum('hid,bi->dbh', p['odd'], h)

  return fn, params, jax.random.normal(keys[3], (3, 8))


ALL = {build.__name__: build for build in (
    transformer, cnn, nnx_transformer, haiku_net, equinox_net, bare)}
