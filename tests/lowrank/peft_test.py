"""PEFT's files: shapes and names by hand, products by float64, round trips to the bit."""

import json
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

stored = pytest.importorskip('safetensors.numpy')


def weights():
  draw = lambda seed, *shape: jnp.asarray(np.random.default_rng(seed).normal(size=shape), 'float32')
  return {'block': {'query': {'kernel': draw(0, 8, 2, 3)}, 'out': {'kernel': draw(1, 2, 3, 8)},
                    'mlp': {'kernel': draw(2, 8, 12), 'bias': draw(3, 12)}},
          'stack': {'kernel': draw(4, 2, 8, 4)}}


def trained(transform, seed=7):
  latents, state = jax.jit(transform.init)(weights())
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape), x.dtype), latents), state


class PeftTest(parameterized.TestCase):

  @parameterized.parameters('lora(3, alpha=6)', 'dora(3, alpha=5.0, scaling=rslora)',
                            "at('.*kernel', lora(3, base=nf4(group=4)))")
  @pytest.mark.sampled(2)
  def test_names_shapes_products_and_round_trip(self, text):
    transform = jsp.parse(text)
    params, state = trained(transform)
    with tempfile.TemporaryDirectory() as directory:
      folder = jsp.export_peft(directory, transform, params)
      config = json.loads((folder / 'adapter_config.json').read_text())
      arrays = stored.load_file(folder / 'adapter_model.safetensors')
      found = jsp.import_peft(directory, transform, jax.jit(transform.init)(weights())[0])
    kept = jax.tree.map(lambda x: x, found)
    kept['block']['mlp']['bias'] = params['block']['mlp']['bias']
    chex.assert_trees_all_equal(kept, params)
    modules = ['block.mlp', 'block.out', 'block.query', 'stack.0', 'stack.1']
    self.assertEqual(config['target_modules'], modules)
    self.assertEqual((config['r'], config['lora_alpha']), (3, {0: 6, 1: 5.0}.get(
        0 if 'alpha=6' in text else 1 if 'dora' in text else 2, 16.0)))
    self.assertEqual((config['use_rslora'], config['use_dora']), ('rslora' in text, 'dora' in text))
    merged = jax.tree.map(np.asarray, jsp.merge(transform, params, state))
    base = jsp.unmerge(transform, params, state)
    shapes = {'block.mlp': (8, 12), 'block.out': (6, 8), 'block.query': (8, 6),
              'stack.0': (8, 4), 'stack.1': (8, 4)}
    of = lambda tree: {'block.mlp': tree['block']['mlp']['kernel'],
                       'block.out': tree['block']['out']['kernel'],
                       'block.query': tree['block']['query']['kernel'],
                       'stack.0': tree['stack']['kernel'][0], 'stack.1': tree['stack']['kernel'][1]}
    for module in modules:   # as PEFT computes it: torch weights are [out, in]
      a, b = (np.float64(arrays[f'base_model.model.{module}.lora_{x}.weight']) for x in 'AB')
      rows, columns = shapes[module]
      self.assertEqual((a.shape, b.shape), ((3, rows), (columns, 3)))
      root = 3 ** 0.5 if config['use_rslora'] else 3
      weight = np.float64(of(base)[module]).reshape(rows, columns).T
      weight = weight + config['lora_alpha'] / root * b @ a
      if config['use_dora']:
        magnitude = np.float64(arrays[f'base_model.model.{module}.lora_magnitude_vector'])
        self.assertEqual(magnitude.shape, (columns,))
        weight = weight * (magnitude / np.linalg.norm(weight, axis=1))[:, None]
      np.testing.assert_allclose(of(merged)[module].reshape(rows, columns).T, weight, atol=1e-4)

  def test_a_file_of_another_model_and_bfloat16(self):
    transform = jsp.lora(2, alpha=8.0)
    params = {'q_proj': {'kernel': jnp.zeros((4, 6), jnp.bfloat16)}}
    latents, state = transform.init(params)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4)).astype('float32'), rng.normal(size=(6, 2)).astype('float32')
    with tempfile.TemporaryDirectory() as directory:
      prefix = 'base_model.model.model.layers.0.self_attn.q_proj'
      stored.save_file({f'{prefix}.lora_A.weight': a, f'{prefix}.lora_B.weight': b},
                       pathlib.Path(directory) / 'adapter_model.safetensors')
      config = pathlib.Path(directory) / 'adapter_config.json'
      config.write_text(json.dumps({'peft_type': 'LORA', 'r': 2, 'lora_alpha': 8}))
      name = lambda weight: 'model.layers.0.self_attn.' + weight.split('/')[0]
      found = jsp.import_peft(directory, transform, latents, modules=name)
      merged = jsp.merge(transform, found, state)['q_proj']['kernel']
      self.assertEqual(merged.dtype, jnp.bfloat16)
      np.testing.assert_allclose(np.float32(merged), 4.0 * (b @ a).T, rtol=0.05, atol=0.1)
      jsp.export_peft(f'{directory}/again', transform, found, modules=name)
      chex.assert_trees_all_equal(
          jsp.import_peft(f'{directory}/again', transform, latents, modules=name), found)
      read = lambda t, p, **names: lambda: jsp.import_peft(directory, t, p, **names)
      wider = transform.init({'q_proj': {'kernel': jnp.zeros((5, 6))}})[0]
      broken = jax.tree.map(lambda x: x * jnp.nan, latents)
      for wrong, message in (
          (read(transform, latents), 'q_proj/kernel: .*has no q_proj'),
          (read(jsp.lora(4), latents), 'was made by lora.2, alpha=8.0'),
          (read(transform, wider, modules=name), 'shape .2, 4., expected'),
          (read(jsp.nm(2, 4), params), 'with a lora or dora, found nm'),
          (lambda: jsp.export_peft(directory, transform, broken), 'q_proj/kernel: .*NaN')):
        with self.assertRaisesRegex(ValueError, message):
          wrong()
      (pathlib.Path(directory) / 'adapter_model.safetensors').write_bytes(b'no such file')
      with self.assertRaisesRegex(ValueError, 'is damaged'):
        jsp.import_peft(directory, transform, latents, modules=name)
      config.write_text('{')
      with self.assertRaisesRegex(ValueError, 'no configuration of a LoRA'):
        jsp.import_peft(directory, transform, latents, modules=name)


if __name__ == '__main__':
  absltest.main()
