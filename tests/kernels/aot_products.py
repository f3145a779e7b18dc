"""Compiles this folder's products for the topologies named on the command line; see `aot`."""

import json
import re
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxsparse as jsp
from jaxsparse.kernels import grouped_matmul
from jaxsparse.kernels import quantized_matmul


def main():
  """Prints one line of JSON."""
  print(json.dumps({name: of_chip(name) for name in sys.argv[1:]}))


def of_chip(name):
  """{product: figures} of one topology."""
  chip = topologies.get_topology_desc(platform='tpu', topology_name=name).devices[0]

  def build(run, *shapes):
    given = [jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(chip))
             for shape, dtype in shapes]
    return jax.jit(run).lower(*given).compile()

  return {'grouped': grouped(build), 'quantized': quantized(build), 'packed models': models(build)}


def grouped(build):
  """Forward and both gradients of ragged experts."""
  m, k, n, groups, dtype = 2048, 1024, 512, 8, jnp.bfloat16

  def passes(x, w, sizes, dy):
    y, pull = jax.vjp(lambda x, w: grouped_matmul.grouped_matmul(
        x, w, sizes, backend='pallas_tpu'), x, w)
    return y, pull(dy)

  found = build(passes, ((m, k), dtype), ((groups, k, n), dtype), ((groups,), jnp.int32),
                ((m, n), dtype))
  return {'kernels': found.as_text().count('custom_call_target="tpu_custom_call"'),
          'flops': found.cost_analysis()['flops'], 'flops_of_the_rows': 6 * m * k * n}


def quantized(build):
  """A token's product with weights of 2048 x 2048 in native codes."""
  rows, k, n, dtype = 8, 2048, 2048, jnp.bfloat16
  found = {}
  for name, codes, groups, how in (
      ('int8', jnp.int8, 1, {}), ('int4', jnp.int4, 1, {}),
      ('int8 x int8', jnp.int8, 1, {'activations': 'int8'}),
      ('int4 in groups', jnp.int4, k // 128, {'backend': 'pallas_tpu'})):
    run = lambda x, c, s, how=how: quantized_matmul.quantized_matmul(x, c, s, **how)
    one = build(run, ((rows, k), dtype), ((k, n), codes), ((groups, n), jnp.float32))
    found[name] = _figures(one, rows, k, n, groups)
  return found


def models(build):
  """The same products, of a layer that is packed, prepared and dispatched."""
  rows, k, n, dtype = 8, 2048, 2048, jnp.bfloat16
  layer = lambda params, x: x @ params['kernel']
  found = {}
  for name, transform, groups, run in (
      ('int8', jsp.quantize('int8'), 1, jsp.dispatch(layer)),
      ('int4', jsp.quantize('int4'), 1, jsp.dispatch(layer)),
      ('int8 x int8', jsp.quantize('int8'), 1, jsp.quantize_activations(layer, 'int8')),
      ('int4 in groups', jsp.quantize('int4', group=128), k // 128, jsp.dispatch(layer))):
    packed = transform.pack(*transform.init({'kernel': jnp.ones((k, n), dtype)}))
    leaves, structure = jax.tree.flatten(jsp.prepare(packed, 'tpu'))
    one = build(lambda x, *leaves, run=run, structure=structure: run(
        jax.tree.unflatten(structure, leaves), x),
                ((rows, k), dtype), *((leaf.shape, leaf.dtype) for leaf in leaves))
    found[name] = _figures(one, rows, k, n, groups)
  return found


def _figures(one, rows, k, n, groups):
  memory, text = one.memory_analysis(), one.as_text()
  others = rows * k * 2 + groups * n * 4
  return {'codes_of_bfloat16': (memory.argument_size_in_bytes - others) / (2 * k * n),
          'temporaries': memory.temp_size_in_bytes,
          'integer': bool(re.search(r's32\S* convolution\(', text)),
          'kernels': text.count('custom_call_target="tpu_custom_call"')}


if __name__ == '__main__':
  main()
