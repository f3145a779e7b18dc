"""The TPU's kernels: interpreted against float64 NumPy, compiled for slices that are not here."""

import importlib.util
import json
import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from jax.test_util import check_grads

import jaxsparse as jsp
from jaxsparse.kernels import panels_tpu
from tests.kernels import problems


class InterpretedTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=5)
  @hypothesis.given(seed=st.integers(0, 99), rows=st.integers(1, 70), features=st.integers(1, 500),
                    panels=st.integers(1, 3), share=st.floats(0, 1))
  def test_like_numpy(self, seed, rows, features, panels, share):
    slots = round(share * -(-features // 128))
    arguments = problems.draw(seed, rows, features, panels, slots, 128, 128)
    problems.assert_agrees(arguments, backend='pallas_tpu')

  def test_transposed_panels_give_the_input_gradient(self):
    arguments = problems.draw(0, 40, 512, 4, 2, 128, 128, even=True)
    problems.assert_agrees(arguments, backend='pallas_tpu', doubly_balanced=True)

  def test_many_columns_are_fetched_by_block(self):
    x, data, kidx, dy = problems.draw(1, 40, 640, 2, 4, 128, 128)
    found = jax.jit(lambda *a: panels_tpu._by_block(*a, interpret=True))(x, data, kidx)
    np.testing.assert_allclose(found, problems.oracle(x, data, kidx, dy)[0], atol=1e-3)

  def test_gradients_numerically(self):
    x, data, kidx, _ = problems.draw(0, 8, 256, 1, 1, 128, 128)
    run = jax.jit(lambda x, w: jsp.block_sparse_matmul(
        x, w, kidx, backend='pallas_tpu', interpret=True))
    check_grads(run, (x, data / 16), order=1, modes=['rev'])

  def test_vmap(self):
    x, data, kidx, dy = problems.draw(2, 8, 256, 2, 1, 128, 128)
    run = jax.vmap(lambda *a: jsp.block_sparse_matmul(*a, backend='pallas_tpu', interpret=True))
    found = jax.jit(run)(*(jnp.stack([a, a]) for a in (x, data, kidx)))
    np.testing.assert_allclose(found[1], problems.oracle(x, data, kidx, dy)[0], atol=1e-3)


_COMPILE = """
import json, sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
import jaxsparse as jsp
name, block = sys.argv[1], int(sys.argv[2])
device = topologies.get_topology_desc(name, platform='tpu').devices[0]
place = jax.sharding.SingleDeviceSharding(device)
m, n, found = 512, 2048, {}
shape = lambda s, t=jnp.bfloat16: jax.ShapeDtypeStruct(s, t, sharding=place)
for slots in (n // block // 2, n // block // 4):
  args = (shape((m, n)), shape((n // block, slots * block, block)),
          shape((n // block, slots), jnp.int32))
  run = lambda x, w, i: jsp.block_sparse_matmul(
      x, w, i, backend='pallas_tpu', doubly_balanced=True)
  loss = lambda x, w, i: run(x, w, i).sum().astype(jnp.float32)
  train = lambda x, w, i: jax.grad(loss, (0, 1))(x, w, i)
  one = jax.jit(run).lower(*args).compile()
  memory, cost = one.memory_analysis(), one.cost_analysis()
  found[slots * block / n] = {
      'arguments': memory.argument_size_in_bytes, 'temporaries': memory.temp_size_in_bytes,
      'calls': one.as_text().count('tpu_custom_call'), 'flops': cost['flops'],
      'gradient_calls': jax.jit(train).lower(*args).compile().as_text().count('tpu_custom_call')}
print(json.dumps(found))
"""


@pytest.mark.tpu_aot
@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='libtpu is absent')
class CompiledTest(parameterized.TestCase):

  @parameterized.parameters(('v5e:2x2', 128), ('v5p:2x2x1', 128), ('v6e:2x2', 256))
  def test_weight_bytes_are_the_density(self, topology, block):
    env = os.environ | {
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
        'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'TPU_WORKER_HOSTNAMES': 'localhost',
        'XLA_FLAGS': ''}   # libtpu refuses flags of CPUs
    said = subprocess.run([sys.executable, '-c', _COMPILE, topology, str(block)], env=env,
                          capture_output=True, text=True, timeout=300)
    self.assertEqual(said.returncode, 0, said.stderr[-3000:])
    for density, one in json.loads(said.stdout.splitlines()[-1]).items():
      dense, x = 2048 * 2048 * 2, 512 * 2048 * 2
      self.assertLess((one['arguments'] - x) / dense, float(density) + 0.01)
      self.assertEqual(one['temporaries'], 0)
      self.assertGreaterEqual(one['calls'], 1)
      self.assertGreaterEqual(one['gradient_calls'], 2)
      self.assertAlmostEqual(one['flops'] / (2 * 512 * 2048**2), float(density), delta=0.01)


if __name__ == '__main__':
  absltest.main()
