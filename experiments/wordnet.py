"""WordNet's nouns: names and glosses of 82,115 concepts, read from Debian's wordnet-base.

Fellbaum, "WordNet: An Electronic Lexical Database" (1998). A line of `data.noun` is one synset:
offset, file number, type, number of names in hexadecimal, the names each with a sense number,
pointers, and after ` | ` the gloss: definitions and examples between semicolons.
"""

import functools
import os
import pathlib
from typing import NamedTuple

import numpy as np

from experiments import packaged

# The variable of WordNet's own tools, then where Debian and the original installer put it.
_VARIABLE = 'WNSEARCHDIR'
_PLACES = ('/usr/share/wordnet', '/usr/local/WordNet-3.0/dict')
_HELD_OUT = 2000
_LEAST_GLOSS = 30  # characters


class Synset(NamedTuple):
  """A concept.

  Attributes:
    names: its synonyms, joined by commas.
    gloss: the first part of its definition.
  """

  names: str
  gloss: str


class Split(NamedTuple):
  """Synsets with two names or more and a gloss of their own, in a fixed order without system."""

  held_out: tuple[Synset, ...]  # 2,000
  train: tuple[Synset, ...]


def path() -> pathlib.Path:
  """Returns where `data.noun` is.

  Raises:
    MissingError: nowhere looked at; says where that was and how to get it.
  """
  given = os.environ.get(_VARIABLE)
  places = [given] if given else list(_PLACES)
  for place in places:
    found = pathlib.Path(place) / 'data.noun'
    if found.is_file():
      return found
  raise packaged.MissingError(
    f'WordNet is not installed: no file data.noun in {" or ".join(places)}; run: apt-get install '
    f'wordnet-base, or set {_VARIABLE} to the folder with the database of WordNet 3.0'
  )


@functools.cache
def load() -> Split:
  """Returns the split, the same at every call and for every seed.

  Raises:
    MissingError: WordNet is not installed.
  """
  synsets = {}
  for synset in _synsets(path()):
    # Two concepts with one gloss could not be told apart by it.
    synsets[synset.gloss] = None if synset.gloss in synsets else synset
  kept = [s for s in synsets.values() if s and ', ' in s.names and len(s.gloss) > _LEAST_GLOSS]
  order = np.random.default_rng(0).permutation(len(kept))
  shuffled = tuple(kept[i] for i in order)
  return Split(shuffled[:_HELD_OUT], shuffled[_HELD_OUT:])


def _synsets(found):
  with found.open(encoding='utf-8') as lines:
    for line in lines:
      if line.startswith(' '):
        continue  # The licence.
      data, _, gloss = line.partition(' | ')
      fields = data.split()
      names = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
      yield Synset(', '.join(n.replace('_', ' ') for n in names), gloss.split(';')[0].strip())
