"""What the programs of this folder share: strict flags, and a sentence for what is wrong."""

import sys
from collections.abc import Sequence

from absl import flags

from launch import exits


def refuse(program: str, problem: object) -> int:
  """Says what is wrong with what was asked, without a traceback; returns the exit code for it."""
  print(f'{program}: {problem}', file=sys.stderr)
  return exits.BAD_INPUT


def parse(program: str, argv: Sequence[str]) -> list[str]:
  """Parses flags strictly and returns the rest: an unknown one is a sentence and exit code 2."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    sys.exit(refuse(program, error))
