"""The files of compressed-tensors: read entry by entry as its documentation says, and back."""

import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

pytest.importorskip('safetensors')


def weights():
  draw = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).normal(size=shape), 'float32')
  return {'block': {'query': {'kernel': draw(0, 12, 2, 3), 'bias': draw(1, 2, 3)},
                    'mlp': {'kernel': draw(2, 12, 11)}}, 'head': {'kernel': draw(3, 11, 5)},
          'norm': {'scale': draw(4, 11)}}


def load(path):
  """A file by the format's own description: a header of JSON, then bytes."""
  raw = pathlib.Path(path).read_bytes()
  start = 8 + int.from_bytes(raw[:8], 'little')
  header = json.loads(raw[8:start])
  kinds = {'F8_E4M3': 'float8_e4m3fn', 'F32': 'float32', 'I8': 'int8', 'I32': 'int32',
           'I64': 'int64'}
  arrays = {}
  for name, found in header.items():
    if name != '__metadata__':
      first, last = (start + n for n in found['data_offsets'])
      kind = jnp.dtype(kinds[found['dtype']])
      arrays[name] = np.frombuffer(raw[first:last], kind).reshape(found['shape'])
  return arrays


def unpack(words, bits, size):
  """Bit by bit; codes go up along the last axis."""
  out = np.zeros((len(words), size), int)
  for n, code in np.ndindex(out.shape):
    word = int(words[n, code // (32 // bits)]) & 0xFFFFFFFF
    out[n, code] = (word >> bits * (code % (32 // bits)) & (2**bits - 1)) - 2 ** (bits - 1)
  return out


class CompressedTensorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("quantize('int4', group=4)", 'pack-quantized', 'group'),
      ("quantize('int3')", 'pack-quantized', 'channel'),
      ("quantize('uint4', group=6)", 'pack-quantized', 'group'),
      ("quantize('int8')", 'int-quantized', 'channel'),
      ("quantize('uint8', granularity='tensor')", 'int-quantized', 'tensor'),
      ("quantize('uint4', granularity='tensor')", 'pack-quantized', 'tensor'),
      ("quantize('int8', group=4)", 'pack-quantized', 'group'),
      ("quantize('float8_e4m3')", 'float-quantized', 'channel'))
  def test_layout_and_back(self, text, form, strategy):
    params = weights()
    transform = jsp.at('block/.*kernel', jsp.parse(text))
    packed = transform.pack(*transform.init(params))
    dense = jsp.densify(packed)
    with tempfile.TemporaryDirectory() as directory:
      jsp.export_compressed_tensors(directory, packed)
      arrays = load(pathlib.Path(directory) / 'model.safetensors')
      config = json.loads((pathlib.Path(directory) / 'config.json').read_text())
      shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
      back = jsp.import_compressed_tensors(directory, shapes)
    config = config['quantization_config']
    group, = config['config_groups'].values()
    self.assertEqual((config['quant_method'], config['format']), ('compressed-tensors', form))
    self.assertEqual(group['targets'], ['block.mlp', 'block.query'])
    args = group['weights']
    self.assertEqual(args['strategy'], strategy)
    bits, symmetric = args['num_bits'], args['symmetric']
    for module, shape in (('block.mlp', (11, 12)), ('block.query', (6, 12))):
      get = lambda key, m=module: arrays.get(f'{m}.{key}')
      if form == 'pack-quantized':
        self.assertEqual(get('weight_shape').tolist(), [*shape])
        self.assertEqual(get('weight_packed').dtype, np.int32)
        codes = unpack(get('weight_packed'), bits, 12)
      else:
        codes = np.asarray(get('weight'), float)
      scale = np.asarray(get('weight_scale'), float)
      self.assertEqual(scale.shape, {'tensor': (1,), 'channel': (shape[0], 1)}.get(
          strategy, (shape[0], 12 // (args['group_size'] or 1))))
      zero = np.zeros(scale.shape)
      if not symmetric:
        zero = get('weight_zero_point')
        if form == 'pack-quantized' and strategy != 'tensor':
          zero = unpack(zero.T, bits, shape[0]).T
      whole = lambda a, n=shape: np.broadcast_to(np.repeat(
          a.reshape(-1, a.shape[-1]), 12 // a.shape[-1], -1), n)
      expected = np.asarray(dense['block'][module.split('.')[1]]['kernel']).reshape(12, -1).T
      np.testing.assert_allclose((codes - whole(zero)) * whole(scale), expected, rtol=1e-6)
    np.testing.assert_array_equal(arrays['head.weight'], params['head']['kernel'].T)
    jax.tree.map(np.testing.assert_array_equal, jsp.densify(back), dense)
    self.assertEqual(type(back['block']['mlp']['kernel']), type(packed['block']['mlp']['kernel']))

  def test_two_schemes_and_what_is_refused(self):
    params = weights()
    both = jsp.rules([('.*/mlp/kernel', jsp.quantize('int8')),
                      ('.*/query/kernel', jsp.quantize('int4', group=3)),
                      ('.*', jsp.identity())])
    packed = both.pack(*both.init(params))
    with tempfile.TemporaryDirectory() as directory:
      where = pathlib.Path(directory)
      jsp.export_compressed_tensors(directory, packed)
      config = json.loads((where / 'config.json').read_text())['quantization_config']
      self.assertEqual(config['format'], 'mixed-precision')
      back = jsp.import_compressed_tensors(directory, params)
      jax.tree.map(np.testing.assert_array_equal, jsp.densify(back), jsp.densify(packed))
      with self.assertRaisesRegex(ValueError, 'block/mlp/kernel: the file has a weight of shape'):
        wrong = dict(params, block=dict(params['block'], mlp={'kernel': jnp.ones((12, 10))}))
        jsp.import_compressed_tensors(directory, wrong)
      with self.assertRaisesRegex(ValueError, r'new/kernel: the file has neither new.weight'):
        jsp.import_compressed_tensors(directory, {'new': {'kernel': jnp.ones((2, 2))}})
      (where / 'model.safetensors').write_bytes(b'nothing')
      with self.assertRaisesRegex(ValueError, 'missing, damaged'):
        jsp.import_compressed_tensors(directory, params)
      for text, message in (("quantize('int4', group=5)", 'groups of 5 do not divide 12 rows'),
                            ('nf4(group=4)', 'no place for nf4'),
                            ('clustered(4)', 'got CodebookArray')):
        transform = jsp.at('block/mlp/kernel', jsp.parse(text))
        with self.assertRaisesRegex(ValueError, f'block/mlp/kernel: .*{message}'):
          jsp.export_compressed_tensors(directory, transform.pack(*transform.init(params)))


if __name__ == '__main__':
  absltest.main()
