"""Where the numbers beside points go, so that they cover neither points nor each other."""

import math
from collections.abc import Hashable, Mapping

# Tried in this order: above right first, as a reader expects.
_ANGLES = (0.8, math.pi / 2, 0.0, -0.8, -math.pi / 2, 2.3, math.pi, -2.3)


def places(
  spots: Mapping[Hashable, tuple[float, float]],
  *,
  distance: float,
  bounds: tuple[float, float, float, float],
) -> dict[Hashable, tuple[float, float]]:
  """Returns the middle of each label: the side of its point with the fewest points and labels.

  Args:
    spots: points, in pixels, y upwards.
    distance: from a point to the middle of its label, in pixels.
    bounds: left, bottom, right and top that labels stay within.

  Example:
    >>> found = places({0: (10, 10), 1: (10, 10)}, distance=5, bounds=(0, 0, 20, 20))
    >>> found[0] != found[1]
    True
  """
  left, bottom, right, top = bounds
  found = {}
  for key in sorted(spots, key=lambda key: spots[key]):
    others = [spot for other, spot in spots.items() if other != key]
    candidates = [
      (spots[key][0] + distance * math.cos(a), spots[key][1] + distance * math.sin(a))
      for a in _ANGLES
    ]

    def crowding(place, others=others):
      outside = not (left < place[0] < right and bottom < place[1] < top)
      points = sum(_closeness(place, spot, distance) for spot in others)
      # Covering another label is worse than touching a point.
      taken = sum(_closeness(place, label, distance) for label in found.values())
      return distance * outside + points + 2 * taken

    found[key] = min(candidates, key=crowding)
  return found


def _closeness(a, b, distance):
  return max(0.0, 1.2 * distance - math.dist(a, b))
