"""From flags to a configuration: what is known is set, everything else is a sentence."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from launch.runs import overlay


@dataclasses.dataclass(frozen=True)
class Config:
  """A configuration with a field of every kind."""

  seed: int = 0
  rate: float = 0.1
  model: str = 'cnn'
  widths: tuple[int, ...] = (1, 2)
  decay: bool = False
  limit: int | None = None

  def __post_init__(self):
    if self.rate <= 0:
      raise ValueError(f'rate: expected a positive number, got {self.rate}.')


class OverlayTest(parameterized.TestCase):
  @parameterized.parameters(
    ('', {}),
    ('rate=1', {'rate': 1.0}),
    ("model='vit', widths=[3, 4]", {'model': 'vit', 'widths': (3, 4)}),
    ('decay=True, limit=None, seed=-3', {'decay': True, 'limit': None, 'seed': -3}),
    ('limit=7,', {'limit': 7}),
  )
  def test_sets_fields(self, text, expected):
    config = overlay.replace(Config(), overlay.parse(text))
    self.assertEqual(config, dataclasses.replace(Config(), **expected))

  @parameterized.parameters(
    ('rate', 'name=literal'),
    ('rate=1) or (2', 'name=literal'),
    ('**{"rate": 1}', 'name=literal'),
    ('rate=open("x")', 'name=literal'),
    ('rate=1, rate=2', 'name=literal'),
    ('rate=' + '(' * 3000, 'name=literal'),
    ('rate=9**9**9', 'name=literal'),
    ('rate=\0', 'name=literal'),
    ('rate=' + '1' * 9000, 'name=literal'),
    ('x' * 20_000, 'at most'),
    ('rte=1', 'seed, rate, model, widths, decay, limit. Did you mean rate?'),
    ('__class__=1', 'not a field'),
    ('decay=1', 'decay: expected bool'),
    ('seed=True', 'seed: expected int'),
    ('seed=1.0', 'seed: expected int'),
    ('model=3', 'model: expected str'),
    ('rate=None', 'rate: expected float'),
    ('rate=1e999', 'rate: expected float'),
    ('rate=-1', 'rate: expected a positive number, got -1.0'),
  )
  def test_refuses(self, text, said):
    with self.assertRaises(ValueError) as caught:
      overlay.replace(Config(), overlay.parse(text))
    self.assertIn(said, str(caught.exception))
    self.assertLess(len(str(caught.exception)), 500)

  def test_a_message_says_which_flag_it_is_about(self):
    for text in ('a b', 'a=1, a=2', '1', 'x' * 20_000):
      with self.assertRaisesRegex(ValueError, '^--options[= ]'):
        overlay.parse(text, 'options')

  def test_finds_experiments_by_their_file(self):
    self.assertContainsSubset(['vision'], overlay.experiments())
    self.assertNotIn('digits', overlay.experiments())
    for name in ('models', '../vision', 'vision.py', '', 'os'):
      with self.assertRaisesRegex(ValueError, 'unknown; known are'):
        overlay.load(name)

  @parameterized.parameters(
    ('nm(2, 4)', "at('k', nm(2, 4))"),
    ("at('.*', nm(2, 4))", "at('.*', nm(2, 4))"),
    ('identity()', 'identity()'),
    (
      "rules([('a', nm(2, 4)), ('.*', identity())])",
      "rules([('a', nm(2, 4)), ('.*', identity())])",
    ),
  )
  def test_a_transform_goes_to_the_experiments_weights(self, text, expected):
    self.assertEqual(jsp.spell(overlay.recipe(text, 'k')), expected)

  @parameterized.parameters('data', 'data:0', 'data:2,data:4', 'rows:2', 'data:-1', 'data:2;')
  def test_refuses_meshes(self, text):
    with self.assertRaisesRegex(ValueError, 'expected axes data and model'):
      overlay.mesh_shape(text)


if __name__ == '__main__':
  absltest.main()
