"""Gives many command lines to `launch.run` or `launch.sweep` in one process, as a shell would.

`python -m tests.launch.hostile_cases run|sweep` reads a JSON list of argument lists from standard
input; the last line of its output is, for each, the exit code and what was said.
"""

import contextlib
import importlib
import io
import json
import sys
import traceback

from absl.testing import flagsaver

from launch import programs


def outcome(module, arguments):
  """The exit code and the words of one command line."""
  said = io.StringIO()
  with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), flagsaver.flagsaver():
    try:
      code = module.main(programs.parse(module._COMMAND, ['launch', *arguments]))
    except SystemExit as leaving:
      code = leaving.code
    except BaseException:
      code = None
      traceback.print_exc(file=said)
  return {'code': code, 'said': said.getvalue()}


if __name__ == '__main__':
  program = importlib.import_module(f'launch.{sys.argv[1]}')
  print(json.dumps([outcome(program, arguments) for arguments in json.load(sys.stdin)]))
