"""Compiles this folder's products for the topologies named on the command line; see `aot`."""

import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from jaxsparse.kernels import grouped_matmul


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

  return {'grouped': grouped(build)}


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


if __name__ == '__main__':
  main()
