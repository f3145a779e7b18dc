"""The grid's text: what it means, and at which column it is refused."""

import pytest

from launch.sweeps import grid
from launch.sweeps import points

_KNOWN = ['transform', 'seed', 'width', 'rate']


@pytest.mark.parametrize(
  'text, found',
  [
    ('seed=[0, 1]', [{'seed': 0}, {'seed': 1}]),
    ('seed=[7] ', [{'seed': 7}]),
    (
      "transform=['nm(2, 4)', 'x=[1]'] * seed=[0, 1]",
      [
        {'transform': 'nm(2, 4)', 'seed': 0},
        {'transform': 'nm(2, 4)', 'seed': 1},
        {'transform': 'x=[1]', 'seed': 0},
        {'transform': 'x=[1]', 'seed': 1},
      ],
    ),
    (
      'zip(width=[16, 32], rate=[1e-3, -5e-4])',
      [{'width': 16, 'rate': 1e-3}, {'width': 32, 'rate': -5e-4}],
    ),
    (
      'zip(width=[1, 2] * seed=[0, 1], rate=[1, 2] + rate=[3, 4])',
      [
        {'width': 1, 'seed': 0, 'rate': 1},
        {'width': 1, 'seed': 1, 'rate': 2},
        {'width': 2, 'seed': 0, 'rate': 3},
        {'width': 2, 'seed': 1, 'rate': 4},
      ],
    ),
    ('seed=[1] + width=[2] * seed=[3]', [{'seed': 1}, {'width': 2, 'seed': 3}]),
    ('(seed=[1] + width=[2]) * rate=[3]', [{'seed': 1, 'rate': 3}, {'width': 2, 'rate': 3}]),
    ('width=[(1, 2), [3], ()]', [{'width': (1, 2)}, {'width': (3,)}, {'width': ()}]),
    ("rate=[None, True, 'é']", [{'rate': None}, {'rate': True}, {'rate': 'é'}]),
    ('\n  seed=[1]\n  * width=[2]\n', [{'seed': 1, 'width': 2}]),
  ],
)
def test_what_a_grid_means(text, found):
  assert grid.points(text, known=_KNOWN) == found


@pytest.mark.parametrize(
  'text, column, message',
  [
    ('seed=[0] * sed=[1]', 12, "'sed' is unknown; known are rate, seed, transform, width"),
    ('seed=[0] * seed=[1]', 12, "'seed' is assigned twice"),
    ('(seed=[1] + width=[2]) * width=[3]', 26, "'width' is assigned twice"),
    ('zip(seed=[1], seed=[2])', 15, "'seed' is assigned twice"),
    ('seed=[]', 6, 'seed=[] is empty'),
    ('seed=3', 6, 'takes a list in brackets'),
    ('seed=[1][0]', 6, 'takes a list in brackets'),
    ('seed=[i for i in (1,)]', 6, 'takes a list in brackets'),
    ('zip(seed=[1, 2], width=[1])', 18, 'found 2 and then 1 values'),
    ("rate=['é', x]", 12, "found 'x'"),
    ("rate=['é'] * seed=[1, 2 + 3]", 23, "found '2 + 3'"),
    ('seed=[1e999]', 7, 'not finite'),
    ('seed=[-1e999]', 8, 'not finite'),
    ('seed=[((1,),)]', 8, 'values are numbers'),
    ("seed=[b'x']", 7, 'values are numbers'),
    ("seed=[f'{1}']", 7, 'values are numbers'),
    ('seed=[1j]', 7, 'values are numbers'),
    ('seed=[*[1]]', 7, 'values are numbers'),
    ('seed=[2**9]', 8, 'unexpected **'),
    ('seed=[1', 6, "'[' was never closed"),
    ('seed=[1]]', 9, "unmatched ']'"),
    ('seed=[1] width=[2]', 10, 'invalid syntax'),
    ("seed=['a]", 7, 'unterminated string'),
    ('seed', 1, "found 'seed'"),
    ('seed==[1]', 1, "found 'seed==[1]'"),
    ("'seed'=[1]", 7, 'unexpected ='),
    ('a.b=[1]', 1, "found 'a.b=[1]'"),
    ('seed=[1] / width=[2]', 1, 'expected name=[values]'),
    ('zip()', 1, 'expected name=[values]'),
    ('seed=[1]\0', 9, 'a control character'),
  ],
)
def test_what_is_no_grid_is_refused_at_its_column(text, column, message):
  with pytest.raises(grid.GridError) as caught:
    grid.points(text, known=_KNOWN)
  assert str(caught.value).startswith(f'--grid, column {column}: ')
  assert message in str(caught.value)


def test_too_many_points_are_refused_before_they_are_made():
  many = f'seed=[{"0," * 4000}] * width=[{"0," * 4000}]'
  with pytest.raises(grid.GridError, match='16000000 points, more than --max_points=1000'):
    grid.points(many, known=_KNOWN)
  with pytest.raises(grid.GridError, match='at most 20000 characters'):
    grid.points('seed=[0]' * 9999, known=_KNOWN)


_SMOKE = points.Defaults('vision', 'smoke')


def _validated(text, defaults=_SMOKE):
  known = points.known_names('vision', 'smoke')
  return points.validated(defaults, grid.points(text, known=known))


def test_every_bad_point_is_named_before_any_starts():
  with pytest.raises(ValueError) as caught:
    _validated(
      "transform=['nm(2, 4)', 'nmm(2, 4)'] + width=[16, 17] + rate=['x'] + size=['zz', 3]"
      " + seed=[-1, 'a'] + transform=[5, 'nm(2,4)']"
    )
  text = str(caught.value)
  assert text.startswith('9 of 11 points cannot run; nothing was started:')
  for number, word in enumerate(
    ["'nmm'", 'width: found 17', 'rate: expected float', "'zz'", 'size: expected a string']
    + ['seed: found -1', 'seed: expected int', 'transform: expected', 'same run as point 1']
  ):
    assert word in text.splitlines()[number + 1]


def test_names_are_safe_stable_and_say_something():
  found = _validated("transform=['nm(2,4)', \"at('../../é<b>.*', nm(2, 4))\"] * seed=[0]")
  again = _validated("seed=[5, 0] * transform=['nm(2, 4)']")
  assert found[0].transform == 'nm(2, 4)'
  assert found[0].name.startswith('nm-2-4-seed-0-')
  assert found[0].name[-10:] == again[1].name[-10:]
  for point in [*found, *again]:
    assert points.NAME.fullmatch(point.name) and '..' not in point.name


def test_a_point_is_another_one_when_anything_differs():
  other = _SMOKE._replace(fields={'steps': 5}), _SMOKE._replace(options={'log_every': 2})
  names = {_validated('seed=[0]', d)[0].name for d in (_SMOKE, _SMOKE._replace(size=''), *other)}
  assert len(names) == 4


def test_options_are_a_closed_list():
  allowed = {'log_every': 5, 'on_nan': 'rollback', 'tensorboard': False, 'mesh': 'data:1'}
  point = _validated('seed=[3]', _SMOKE._replace(options=allowed))[0]
  words = points.argv(point, '/w')
  assert words[3:8] == [
    '--seed=3',
    '--log_every=5',
    '--mesh=data:1',
    '--on_nan=rollback',
    '--notensorboard',
  ]
  for options in ({'flagfile': '/etc/passwd'}, {'workdir': '/etc'}, {'log_every': '5 --x'}):
    with pytest.raises(ValueError, match='option'):
      _validated('seed=[3]', _SMOKE._replace(options=options))
