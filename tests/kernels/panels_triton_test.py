"""The GPU's kernels: interpreted against float64 NumPy, and exported without a GPU."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
from absl.testing import absltest
from absl.testing import parameterized
from jax.test_util import check_grads

import jaxsparse as jsp
from tests.kernels import problems


class TritonTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=4)
  @hypothesis.given(seed=st.integers(0, 99), rows=st.integers(1, 140),
                    features=st.integers(1, 200), panels=st.integers(1, 2), share=st.floats(0, 1),
                    bk=st.sampled_from([16, 128]), bn=st.sampled_from([32, 128]))
  def test_like_numpy(self, seed, rows, features, panels, share, bk, bn):
    slots = round(share * -(-features // bk))
    arguments = problems.draw(seed, rows, features, panels, slots, bk, bn)
    problems.assert_agrees(arguments, backend='pallas_triton')

  def test_transposed_panels_and_numeric_gradients(self):
    arguments = problems.draw(0, 40, 128, 4, 2, 32, 32, even=True)
    problems.assert_agrees(arguments, backend='pallas_triton', doubly_balanced=True)
    x, data, kidx, _ = arguments
    run = jax.jit(lambda x, w: jsp.block_sparse_matmul(
        x, w, kidx, backend='pallas_triton', interpret=True))
    check_grads(run, (x[:4], data), order=1, modes=['rev'])

  def test_exported_without_a_gpu(self):
    shape = jax.ShapeDtypeStruct
    args = (shape((256, 1024), jnp.bfloat16), shape((8, 256, 128), jnp.bfloat16),
            shape((8, 2), jnp.int32))
    run = lambda x, w, i: jsp.block_sparse_matmul(x, w, i, backend='pallas_triton',
                                                  doubly_balanced=True)
    train = jax.grad(lambda x, w, i: run(x, w, i).astype(jnp.float32).sum(), (0, 1))
    name = '__gpu$xla.gpu.triton'
    # Pallas of jax 0.12 asks which GPU it is for.
    device = jax.sharding.AbstractDevice('NVIDIA H100 80GB HBM3', num_cores=None, platform='cuda')
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    for fn, calls in ((run, 1), (train, 2)):
      with jax.sharding.use_abstract_mesh(mesh):
        exported = jax.export.export(
            jax.jit(fn), platforms=['cuda'],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name)])(*args)
      self.assertGreaterEqual(str(exported.mlir_module()).count(name), calls)


if __name__ == '__main__':
  absltest.main()
