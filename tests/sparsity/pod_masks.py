"""Compiles one global 80 % mask over 2^30 weights for v5e:16x16; prints scratch and collectives."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

import jaxsparse as jsp


def main():
  """Prints a JSON object, by the number of weights that the 2^30 entries are divided into."""
  topology = topologies.get_topology_desc(platform='tpu', topology_name='v5e:16x16')
  mesh = jax.sharding.Mesh(np.array(topology.devices).reshape(16, 16), ('data', 'model'))
  place = NamedSharding(mesh, PartitionSpec('data', 'model'))
  transform = jsp.magnitude(0.8, distribution=jsp.pooled)
  found = {}
  for leaves in (1, 16):
    w = jax.ShapeDtypeStruct((2**17 // leaves, 2**13), jnp.float32, sharding=place)
    params = {f'layer_{i}/kernel': w for i in range(leaves)}
    run = jax.jit(lambda p: jsp.masks(transform.init(p)[1]),
                  out_shardings=dict.fromkeys(params, place))
    compiled = run.lower(params).compile()
    text = compiled.as_text()
    sums = re.findall(r'=\s(.*?)\sall-reduce(?:-start)?\(', text)
    found[leaves] = {
      'weights': sum(w.size for w in params.values()),
      'scratch_bytes': compiled.memory_analysis().temp_size_in_bytes,
      'gathers': len(re.findall(r'\s(?:all-gather|all-to-all)(?:-start)?\(', text)),
      # Scalars, whatever their layout: four bytes each.
      'all_reduce_bytes': 4 * sum(len(re.findall(r'\w+\[[\d,]*\]', s)) for s in sums),
    }
  print(json.dumps(found))


if __name__ == '__main__':
  main()
