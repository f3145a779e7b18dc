"""What packed weights cost where they are used, found in the trace and replayed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as jsp
from jaxsparse.trace import costs
from jaxsparse.trace import timing


class _Clock:
  """Stands for `timing.interleaved`: runs both sides once and says how long each took."""

  def __init__(self, dense, ratio):
    self.answer, self.sides = {'dense': (dense, 1.0), 'stored': (dense * ratio, ratio)}, []

  def __call__(self, runs):
    self.sides.append({name: run() for name, run in runs.items()})
    return self.answer


def _model(params, image, ids):
  """A convolution, a table looked up and multiplied by, experts, and a scanned stack."""
  x = jax.lax.conv_general_dilated(image, params['conv'], (2, 2), 'SAME',
                                   dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  x = x.mean((1, 2)) + params['table'][ids]
  x = jax.lax.ragged_dot(x, params['experts'], jnp.array([1, 2], jnp.int32))
  x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params['stack'])
  return x @ params['table'].T


def _packed():
  shapes = {'conv': (3, 3, 4, 8), 'table': (16, 8), 'experts': (2, 8, 8), 'stack': (5, 8, 8)}
  params = {k: jax.random.normal(jax.random.key(0), shape) for k, shape in shapes.items()}
  inputs = jnp.ones((3, 6, 6, 4)), jnp.array([0, 5, 15])
  axes = jsp.axes_of(_model, params, *inputs)
  transform = jsp.quantize('int8')
  return transform.pack(*transform.init(params, axes=axes)), inputs


def test_every_kind_of_operation_is_replayed(monkeypatch):
  clock = _Clock(2.0, 1.5)
  monkeypatch.setattr(timing, 'interleaved', clock)
  packed, inputs = _packed()
  uses = jsp.measure_uses(_model, packed, *inputs)
  assert uses == dict.fromkeys(packed, (1.5, 'measured'))
  assert len(clock.sides) == 5   # the table is looked up, and multiplied by
  for sides in clock.sides:
    assert sides['dense'].shape == sides['stored'].shape
    assert np.isfinite(sides['stored']).all() and np.asarray(sides['stored']).any()


def test_fastest_and_explain_take_what_was_measured():
  packed, _ = _packed()
  uses = {'conv': costs.Ratio(1.2, 'measured'), 'table': costs.Ratio(0.5, 'measured')}
  held = jsp.fastest(packed, jsp.Costs(), uses=uses)
  assert not jsp.is_format(held['conv']) and jsp.is_format(held['table'])
  assert jsp.is_format(held['experts'])   # nothing was measured: as before
  np.testing.assert_array_equal(held['conv'], packed['conv'].todense())
  lines = str(jsp.explain(packed, uses=uses)).splitlines()
  assert any(line.startswith('conv') and '1.20!' in line and 'measured' in line for line in lines)


def test_uses_are_timed_here_and_wants_concrete_weights():
  packed, inputs = _packed()
  uses = jsp.measure_uses(_model, {'table': packed['table']} | {
    k: v.todense() for k, v in packed.items() if k != 'table'}, *inputs)
  assert [*uses] == ['table'] and 0 < uses['table'].value < 1000
  with pytest.raises(TypeError, match=r'conv.*outside of jit'):
    jax.jit(lambda p: jsp.measure_uses(_model, p, *inputs) and 0)(packed)


def test_uses_are_compiled_of_shapes_alone():
  packed, inputs = _packed()
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (packed, inputs))
  uses = jsp.compile_uses(_model, shapes[0], *shapes[1])
  assert set(uses) == set(packed) and {r.kind for r in uses.values()} == {'compiled'}
  assert uses == jsp.compile_uses(_model, packed, *inputs)
  transform = jsp.low_rank(4)
  params = {'kernel': jax.random.normal(jax.random.key(0), (3, 3, 32, 64))}
  model = lambda p, x: jax.lax.conv_general_dilated(
    x, p['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  factors = transform.pack(*transform.init(params, axes=jsp.axes_of(
    model, params, jnp.ones((2, 16, 16, 32)))))
  ratio = jsp.compile_uses(model, factors, jnp.ones((2, 16, 16, 32)))['kernel'].value
  # 1,408 multiply-adds a pixel of 18,432, and as many bytes of input and output.
  assert 1408 / 18432 < ratio < 0.2 and not jsp.is_format(jsp.fastest(
    factors, jsp.Costs(), uses={'kernel': costs.Ratio(1 / ratio, 'compiled')})['kernel'])


def test_costs_say_how_products_are_replayed(monkeypatch):
  clock = _Clock(2.0, 1.5)
  monkeypatch.setattr(timing, 'interleaved', clock)
  packed, inputs = _packed()
  table = jsp.compile_costs(packed, (1, 3))
  assert jsp.measure_uses(_model, packed, *inputs, costs=table) == dict.fromkeys(
      packed, (1.5, 'measured'))
