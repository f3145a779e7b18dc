"""What a run shows to a transform that judges weights by data, against the functions themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from experiments import task as tasks
from launch.runs import evidence
from launch.runs import loop


def toy():
  def batch(position):
    rng = np.random.default_rng([7, position])
    x = rng.normal(size=(8, 16)).astype('f') * np.linspace(0.1, 2, 16, dtype='f')
    return {'x': x, 'y': x[:, :4]}

  def loss(params, batch, key):
    del key
    return ((batch['x'] @ params['kernel'] - batch['y']) ** 2).mean(), {}

  return tasks.Task(
    init=lambda: {'kernel': jax.random.normal(jax.random.key(0), (16, 4))},
    loss=loss,
    batch=batch,
    tx=optax.adam(0.05),
    steps=4,
    evaluate=lambda params: {'accuracy': 1.0},
    apply=lambda params, x: x @ params['kernel'],
    inputs=np.zeros((1, 16), 'f'),
    weights='kernel',
  )


class EvidenceTest(parameterized.TestCase):
  @parameterized.parameters(
    ('identity()', ()),
    ('magnitude(0.5)', ()),
    ("prune('snip', schedule=at_step(1, 0.5))", ()),  # by then the step hands it gradients
    ("prune('snip', schedule=0.5) | fake_quantize('int8')", ('mean_gradient',)),
    ("prune('fisher', schedule=0.5)", ('rms_gradient',)),
    ("prune('grasp', schedule=0.5)", ('hessian_gradient',)),
    ("packed_masks(prune('synflow', schedule=0.5))", ('flow_gradient',)),
    ("at('kernel', wanda(0.5))", ('stats',)),
    ('lora(4, base=wanda(0.5))', ('stats',)),
    ('svd_llm(4)', ('stats',)),
    (
      "rules([('a', sparsegpt(0.5)), ('.*', prune('saliency', schedule=0.5))])",
      ('mean_gradient', 'stats'),
    ),
  )
  def test_a_transform_says_what_it_needs(self, text, needs):
    self.assertEqual(tuple(sorted(jsp.parse(text).spec.needs)), needs)

  def test_it_is_what_the_functions_give_and_init_takes_it(self):
    task = toy()
    params = task.init()
    loss = lambda p, b: task.loss(p, b, None)[0]
    data = [(task.batch(i),) for i in range(3)]
    x = np.concatenate([b['x'] for (b,) in data])
    expected = {
      'wanda(0.5)': {'stats': {'kernel': x.T @ x}},
      "prune('snip', schedule=0.5)": {'grads': jax.grad(loss)(params, {'x': x, 'y': x[:, :4]})},
      "prune('fisher', schedule=0.5)": {'grads': jsp.criteria.rms_gradient(loss, params, data)},
      "prune('grasp', schedule=0.5)": {
        'grads': jsp.criteria.hessian_gradient(loss, params, *data[0])
      },
      "prune('synflow', schedule=0.5)": {'grads': {'kernel': jnp.ones((16, 4))}},
    }
    mesh = loop.make_mesh({'data': -1, 'model': 1})
    for text, wanted in expected.items():
      transform = jsp.parse(text)
      found = evidence.gathered(task, transform, batches=3)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, wanted
      )
      if 'wanda' not in text:
        continue
      ts = loop.program(task, transform, mesh, **found).create()
      masks = jsp.masks(transform.init(params, **found)[1])
      np.testing.assert_array_equal(jsp.masks(ts.state)['kernel'], masks['kernel'])
      self.assertEqual(int(masks['kernel'].sum()), 32)

  def test_two_kinds_of_gradients_are_refused(self):
    transform = jsp.parse("prune('snip', schedule=0.2) | prune('fisher', schedule=0.5)")
    with self.assertRaisesRegex(ValueError, 'mean_gradient and rms_gradient'):
      evidence.gathered(toy(), transform, batches=1)


if __name__ == '__main__':
  absltest.main()
