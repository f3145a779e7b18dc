"""Fronts against the definition, and the pictures of them."""

import hypothesis
import pytest
from hypothesis import strategies as st

from jaxsparse import reports
from jaxsparse.reports import pareto

_FIGURES = st.one_of(st.none(), st.integers(0, 4), st.just(float('nan')))


def _beaten(i, costs, gains, known):
  return any(
    costs[j] <= costs[i] and gains[j] >= gains[i] and (costs[j], gains[j]) != (costs[i], gains[i])
    for j in known
  )


@hypothesis.given(st.lists(st.tuples(_FIGURES, _FIGURES), max_size=8))
def test_front_is_what_nothing_beats(points):
  costs, gains = [c for c, _ in points], [g for _, g in points]
  known = [i for i, p in enumerate(points) if all(isinstance(v, int) for v in p)]
  front = reports.pareto_front(costs, gains)
  assert sorted(front) == [i for i in known if not _beaten(i, costs, gains, known)]
  assert [costs[i] for i in front] == sorted(costs[i] for i in front)


def test_front_by_hand():
  #      cheap and bad, beaten, middle, its twin, dear and best
  assert reports.pareto_front([1, 3, 2, 2, 9], [0.5, 0.7, 0.8, 0.8, 0.9]) == [0, 2, 3, 4]
  assert reports.pareto_front([], []) == []


def test_front_refuses_unequal_lengths():
  with pytest.raises(ValueError, match='got 1 and 2'):
    reports.pareto_front([1], [1, 2])


@pytest.mark.parametrize(
  'value, unit, text',
  [(999, 'B', '999 B'), (999_900, 'B', '1.00 MB'), (38_282, 'B', '38.3 kB'), (0.5, '×', '0.50×')],
)
def test_quantity(value, unit, text):
  assert pareto.quantity(value, unit) == text


def test_png_survives_missing_figures():
  runs = [
    reports.Record(model='m', label='dense', transform='identity()', baseline=True, accuracy=0.9),
    reports.Record(model='m', label='$_{', transform='t', accuracy=float('nan'), size_bytes=3),
  ]
  assert reports.pareto_png(runs, title='a $ title').startswith(b'\x89PNG')
