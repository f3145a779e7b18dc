"""Matrix views of weights."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.numerics import axes

D = axes.DimensionNumbers


def einsum_view(w, roles):
  """The matrix of each batch element, entry by entry."""
  batch = [a for a in range(w.ndim) if a not in (*roles.reduction, *roles.output)]
  size = lambda group: int(np.prod([w.shape[a] for a in group], dtype=int))
  out = np.zeros((*[w.shape[a] for a in batch], size(roles.reduction), size(roles.output)))
  for index in itertools.product(*map(range, w.shape)):
    row = col = 0
    for a in roles.reduction:
      row = row * w.shape[a] + index[a]
    for a in roles.output:
      col = col * w.shape[a] + index[a]
    out[(*[index[a] for a in batch], row, col)] = w[index]
  return out


class LayoutTest(parameterized.TestCase):

  @parameterized.named_parameters(
      dict(testcase_name='flax', shape=(4, 6), roles=D((0,), (1,)), matrix=(4, 6), batch=()),
      dict(testcase_name='equinox', shape=(6, 4), roles=D((1,), (0,)), matrix=(4, 6), batch=()),
      dict(testcase_name='convolution', shape=(3, 2, 4, 5), roles=D((0, 1, 2), (3,)),
           matrix=(24, 5), batch=()),
      dict(testcase_name='oihw', shape=(5, 4, 3, 2), roles=D((1, 2, 3), (0,)), matrix=(24, 5),
           batch=()),
      dict(testcase_name='query', shape=(4, 2, 3), roles=D((0,), (1, 2)), matrix=(4, 6), batch=()),
      dict(testcase_name='swapped', shape=(4, 2, 3), roles=D((2, 0), (1,)), matrix=(12, 2),
           batch=()),
      dict(testcase_name='batch_middle', shape=(4, 3, 5), roles=D((0,), (2,)), matrix=(3, 4, 5),
           batch=(1,)),
      dict(testcase_name='batch_last', shape=(4, 5, 3), roles=D((0,), (1,)), matrix=(3, 4, 5),
           batch=(2,)),
      dict(testcase_name='two_batches', shape=(2, 4, 3, 5), roles=D((3,), (1,)),
           matrix=(2, 3, 5, 4), batch=(0, 2)),
      dict(testcase_name='nothing_produced', shape=(2, 4), roles=D((1,), ()), matrix=(2, 4, 1),
           batch=(0,)))
  def test_view(self, shape, roles, matrix, batch):
    layout = axes.Layout(shape, 'float32', roles)
    self.assertEqual((layout.matrix_shape, layout.batch), (matrix, batch))
    w = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = layout.to_matrix(jnp.asarray(w))
    np.testing.assert_array_equal(found, einsum_view(w, roles))
    np.testing.assert_array_equal(layout.from_matrix(found), w)

  def test_no_copy_of_a_matrix(self):
    w = jnp.ones((3, 4))
    layout = axes.Layout(w.shape, w.dtype, axes.default_axes(2))
    self.assertIs(layout.to_matrix(w), w)
    self.assertIs(layout.from_matrix(w), w)

  def test_drop_leading_is_a_slice(self):
    layout = axes.Layout((2, 4, 3, 5), 'bfloat16', D((3,), (1,)))
    w = jnp.arange(120.0).reshape(layout.shape)
    inner = layout.drop_leading()
    self.assertEqual((inner.shape, inner.axes, inner.dtype),
                     ((4, 3, 5), D((2,), (0,)), jnp.bfloat16))
    chex.assert_trees_all_equal(inner.to_matrix(w[1]), layout.to_matrix(w)[1])
    with self.assertRaisesRegex(ValueError, 'Axis 0 .* is not a batch axis'):
      inner.drop_leading()

  @parameterized.parameters(((0,), (0,)), ((0, 0), (1,)), ((2,), (1,)), ((-1,), (0,)))
  def test_bad_roles(self, reduction, output):
    with self.assertRaisesRegex(ValueError, r'distinct axes of a weight of shape \(3, 4\)'):
      axes.Layout((3, 4), 'float32', D(reduction, output))

  def test_static(self):
    layout = axes.Layout((3, np.int64(4)), jnp.float32, ([0], [1]))
    self.assertEqual(hash(layout), hash(axes.Layout((3, 4), 'float32', D((0,), (1,)))))
    self.assertEqual(layout.astype('float16').dtype, jnp.float16)
    out = jax.eval_shape(layout.to_matrix, jax.ShapeDtypeStruct((3, 4), jnp.float32))
    self.assertEqual(out.shape, (3, 4))


if __name__ == '__main__':
  absltest.main()
