"""Numbers beside points keep off each other."""

import itertools
import math

from jaxsparse.reports import labels


def test_labels_of_crowded_points_are_apart_and_inside():
  spots = {i: (50 + 2 * (i % 3), 50.0) for i in range(6)}
  places = labels.places(spots, distance=13, bounds=(0, 0, 100, 100))
  assert all(0 < x < 100 and 0 < y < 100 for x, y in places.values())
  assert all(math.dist(a, b) > 6 for a, b in itertools.combinations(places.values(), 2))


def test_a_lonely_label_is_above_right():
  (x, y), = labels.places({'a': (5, 5)}, distance=2, bounds=(0, 0, 10, 10)).values()
  assert x > 5 and y > 5
