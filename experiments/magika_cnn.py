"""The network of Magika, which names the type of a file from 2,048 of its bytes, in pure JAX.

Fratantonio et al., "Magika: AI-Powered Content-Type Detection" (arXiv:2409.13768); the weights are
those of the package magika 1.0.3 (Apache-2.0), model standard_v3_3: 784,223 of them, exported to
ONNX by its authors from JAX. The file is read with `onnx`; nothing of the package is imported.

An embedding of bytes, four of them a position; a normalization along positions; one convolution
five wide; the maximum over positions; a normalization; a head of 214 types.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from experiments import packaged

READER = 'pip install onnx'
INSTALL = 'pip install --no-deps magika==1.0.3'
PINNED = {
  'model.onnx': 'fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c',
  'config.min.json': 'ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db',
}
LENGTH = 2048  # bytes the model sees
_HALF = LENGTH // 2
_BLOCK = 4096  # bytes read at either end of a file
_PADDING = 256
_EPSILON = 1e-6

# Ends of the names of the initializers, which an exporter made up.
_EMBEDDING = 'get_logits_/Const:0'
_EMBEDDING_BIAS = 'Dense_0/Reshape:0'
_POSITIONS = ('LayerNorm_0/Reshape_2:0', 'LayerNorm_0/Reshape_3:0')
_CONVOLUTION = 'Conv_0/transpose_3:0'
_CONVOLUTION_BIAS = 'const_fold_opt__209'
_CHANNELS = ('LayerNorm_1/Reshape_2:0', 'LayerNorm_1/Reshape_3:0')
_HEAD = 'get_logits_/Const_24:0'
_HEAD_BIAS = 'Dense_1/Reshape:0'


def path(name: str = 'model.onnx'):
  """Returns the path of a file of the model, checked.

  Raises:
    MissingError: the package is not installed.
    ValueError: its file has other contents.
  """
  place = f'models/standard_v3_3/{name}'
  return packaged.file('magika', place, sha256=PINNED[name], install=INSTALL)


def labels() -> list[str]:
  """Returns the 214 types, in the order of the logits.

  Raises:
    MissingError: the package is not installed.
    ValueError: its file has other contents.
  """
  return json.loads(path('config.min.json').read_text(encoding='utf-8'))['target_labels_space']


def load() -> dict:
  """Returns the pretrained weights as a tree of float32 numpy arrays, a new tree at every call.

  Raises:
    MissingError: the package is not installed.
    ValueError: its file has other contents.
  """
  return jax.tree.map(lambda x: x, _load())


@functools.cache
def _load():
  packaged.require('onnx', install=READER)
  import onnx
  from onnx import numpy_helper

  stored = {i.name: i for i in onnx.load(path()).graph.initializer}

  def array(end):
    (name,) = (n for n in stored if n.endswith(end))
    return numpy_helper.to_array(stored[name])

  norm = lambda ends: {'scale': array(ends[0])[0], 'bias': array(ends[1])[0]}
  # [out, in, width, 1] in ONNX, [width, in, out] here.
  convolution = array(_CONVOLUTION)[..., 0].transpose(2, 1, 0)
  return {
    'bytes': {'embedding': array(_EMBEDDING), 'bias': array(_EMBEDDING_BIAS).reshape(-1)},
    'positions_norm': norm(_POSITIONS),
    'conv': {
      'kernel': np.ascontiguousarray(convolution),
      'bias': array(_CONVOLUTION_BIAS).reshape(-1),
    },
    'channels_norm': norm(_CHANNELS),
    'head': {'kernel': array(_HEAD), 'bias': array(_HEAD_BIAS).reshape(-1)},
  }


def features(head: bytes, tail: bytes) -> np.ndarray:
  """Returns what the model sees of a file, `[2048]` int32 of 0 to 255, or 256 for no byte.

  Args:
    head: the first 4,096 bytes of the file, or all of them.
    tail: its last 4,096, or all of them.

  Example:
    >>> features(b' ab', b' ab')[[0, 1, 2, -3, -2, -1]].tolist()
    [97, 98, 256, 32, 97, 98]
  """
  ids = np.full(LENGTH, _PADDING, np.int32)
  first, last = head.lstrip()[:_HALF], tail.rstrip()[-_HALF:]
  ids[: len(first)] = np.frombuffer(first, np.uint8)
  ids[LENGTH - len(last) :] = np.frombuffer(last, np.uint8)
  return ids


def read(found) -> np.ndarray:
  """Returns the features of a file, `[2048]` int32; at most 8 kB of it are read.

  Args:
    found: its `pathlib.Path`.
  """
  with found.open('rb') as stream:
    head = stream.read(_BLOCK)
    size = stream.seek(0, 2)
    stream.seek(max(size - _BLOCK, 0))
    return features(head, stream.read(_BLOCK))


def apply(params, ids: jax.Array) -> jax.Array:
  """Maps features `[batch, 2048]` to logits `[batch, 214]`.

  Args:
    params: from `load`.
    ids: from `features`.
  """
  x = jnp.take(params['bytes']['embedding'], ids, axis=0)
  x = jax.nn.gelu(_plus(x, params['bytes']['bias']))
  x = _normalize(params['positions_norm'], x.reshape(len(x), LENGTH // 4, -1), axis=1)
  x = jax.lax.conv_general_dilated(
    x, params['conv']['kernel'], (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
  )
  x = jax.nn.gelu(_plus(x, params['conv']['bias'])).max(1)
  x = _normalize(params['channels_norm'], x, axis=1)
  return _plus(x @ params['head']['kernel'], params['head']['bias'])


def _plus(x, bias):
  return x + jnp.broadcast_to(bias, x.shape)


def _normalize(params, x, *, axis):
  centred = x - x.mean(axis, keepdims=True)
  variance = jnp.square(centred).mean(axis, keepdims=True)
  scale, bias = (jnp.broadcast_to(params[name], x.shape) for name in ('scale', 'bias'))
  return centred * jax.lax.rsqrt(variance + _EPSILON) * scale + bias
