"""Weights there and back as `qwix.QArray`; what Qwix makes of them is what they are."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


class Theirs(NamedTuple):
  """The fields of `qwix.QArray`."""

  qvalue: Any
  scale: Any
  zero_point: Any = None
  qtype: Any = None


def packed(transform, shape, axes=None):
  w = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  return transform.pack(*transform.init({'kernel': w}, axes=axes))


class QwixTest(parameterized.TestCase):

  @parameterized.parameters(
      ("quantize('int8')", (6, 4)), ("quantize('int8', granularity='tensor')", (6, 4)),
      ("quantize('int4', group=3)", (6, 4)), ("quantize('uint4', group=(3, 2))", (6, 4)),
      ("quantize('uint8')", (6, 4)), ("quantize('float8_e4m3')", (6, 4)),
      ("quantize('int4', double_quantize=True, group=2)", (6, 4)),
      ("quantize('mxfp8')", (64, 4)), ("quantize('int8')", (3, 6, 4)),
      ("quantize('int8')", (2, 2, 3, 4)), ("quantize('int3')", (6, 4)),
      ("nm(2, 4) | quantize('int8')", (8, 4)), ('nf4(group=3)', (6, 4)),
      ("quantize('mxfp4')", (64, 4)), ("quantize('nvfp4')", (32, 4)))
  def test_there_and_back(self, text, shape):
    qwix = pytest.importorskip('qwix')
    axes = {'kernel': jsp.DimensionNumbers((0, 1, 2), (3,))} if len(shape) == 4 else None
    ours = packed(jsp.parse(text), shape, axes)
    dense = jsp.densify(ours)['kernel']
    theirs = jsp.to_qwix(ours)
    self.assertIsInstance(theirs['kernel'], qwix.QArray)
    np.testing.assert_allclose(qwix.dequantize(theirs['kernel']), dense, rtol=1e-6, atol=1e-7)
    back = jsp.from_qwix(theirs, axes=axes)['kernel']
    np.testing.assert_allclose(back.todense(), dense, rtol=1e-6, atol=1e-7)

  @parameterized.parameters(('int8', {}), ('int4', {'tiled_axes': {0: 3}}),
                            ('int8', {'channelwise_axes': (1,)}), ('float8_e4m3fn', {}),
                            ('int8', {'calibration_method': 'minmax', 'channelwise_axes': (1,)}),
                            ('int4', {'calibration_method': 'minmax', 'tiled_axes': {0: 2}}),
                            ('uint4', {'channelwise_axes': (1,)}), ('nf4', {'tiled_axes': {0: 3}}),
                            ('float4_e2m1fn', {'channelwise_axes': (1,)}))
  def test_arrays_of_qwix(self, qtype, kwargs):
    qwix = pytest.importorskip('qwix')
    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    theirs = qwix.quantize(w, qtype, **kwargs)
    ours = jsp.from_qwix({'layer': {'kernel': theirs, 'bias': w[0]}})['layer']['kernel']
    np.testing.assert_allclose(ours.todense(), qwix.dequantize(theirs), rtol=1e-6, atol=1e-7)
    again = jsp.to_qwix({'kernel': ours})['kernel']
    np.testing.assert_allclose(qwix.dequantize(again), qwix.dequantize(theirs), rtol=1e-6,
                               atol=1e-7)
    x = w[:2].T @ jnp.ones((2, 6))
    np.testing.assert_allclose(jsp.dispatch(lambda p, x: x @ p['w'])({'w': ours}, x),
                               x @ qwix.dequantize(theirs), rtol=1e-5, atol=1e-5)

  def test_by_hand_without_qwix(self):
    theirs = Theirs(jnp.array([[-128, 7], [0, 1], [5, 5]], jnp.int8), jnp.array([[0.5, 2.0]]),
                    jnp.array([[-128, 1]], jnp.int8))
    found = jsp.from_qwix({'kernel': theirs})['kernel'].todense()
    self.assertEqual(found.tolist(), [[0, 12], [64, 0], [66.5, 8]])
    for codes, kind, values in (
        (jnp.array([[0, 15], [7, 12]], jnp.uint4), 'nf4', [[-0.5, 2], [0, 0.44070982933 * 2]]),
        (jnp.array([[-6, 0.5], [3, 1.5]], jnp.float4_e2m1fn), None, [[-3, 1], [1.5, 3]])):
      theirs = Theirs(codes, jnp.array([[0.5, 2.0]]), None, kind)
      np.testing.assert_allclose(jsp.from_qwix({'kernel': theirs})['kernel'].todense(), values,
                                 rtol=1e-6)
    for bad, message in (
        (Theirs(jnp.ones((2, 2), jnp.int16), jnp.ones((1, 2))), 'codes are of int16'),
        (Theirs(jnp.ones((3, 2, 2), jnp.int8), jnp.ones((1, 1, 2))), 'of each matrix'),
    ):
      with self.assertRaisesRegex(ValueError, f'a/kernel: .*{message}'):
        jsp.from_qwix({'a': {'kernel': bad}})

  def test_what_qwix_cannot_hold(self):
    pytest.importorskip('qwix')
    for text, message in (("quantize('uint4', scale='hqq')", 'no whole numbers'),
                          ("quantize('int4', group=4)", 'groups of 4 do not divide'),
                          ("quantize('binary')", 'got binary')):
      with self.assertRaisesRegex(ValueError, f'kernel: .*{message}'):
        jsp.to_qwix(packed(jsp.parse(text), (6, 4)))


if __name__ == '__main__':
  absltest.main()
