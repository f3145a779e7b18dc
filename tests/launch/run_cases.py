"""Runs `launch.run` for many command lines in one process: importing it takes seconds.

Reads a JSON list of argument lists from standard input; writes, for each, the exit code and what
went to standard error, as JSON on the last line of standard output.
"""

import contextlib
import io
import json
import sys

from absl.testing import flagsaver

from launch import programs
from launch import run


def outcome(arguments):
  """The exit code and the words of one command line."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said), flagsaver.flagsaver():
    try:
      code = run.main(programs.parse('launch.run', ['launch.run', *arguments]))
    except SystemExit as leaving:
      code = leaving.code
  return {'code': code, 'said': said.getvalue()}


if __name__ == '__main__':
  print(json.dumps([outcome(arguments) for arguments in json.load(sys.stdin)]))
