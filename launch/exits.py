"""Exit codes of a run: what ended it, for schedulers, sweeps and supervisors.

| code | name | meaning | start again? |
|---|---|---|---|
| 0 | DONE | finished, or found finished | no |
| 1 | FAILED | an error that nobody foresaw; its traceback is on stderr | after a look |
| 2 | BAD_INPUT | flags, files or a run directory that do not fit | no, mend them |
| 42 | PREEMPTED | told to stop by SIGTERM; one common step is saved | yes, at once |
| 43 | PEER_LOST | a process or host of the run died, fell silent or never came | yes |
| 44 | DIVERGED | loss or state not finite, or grown beyond the policy | no |
| 74 | SAVE_FAILED | no checkpoint could be written; earlier ones are whole | once there is room |
| 75 | STUCK | alive, but no step within the limit | yes |
"""

import contextlib
import os
import signal
import sys
from typing import NoReturn

DONE = 0
FAILED = 1
BAD_INPUT = 2
PREEMPTED = 42
PEER_LOST = 43
DIVERGED = 44
SAVE_FAILED = 74
STUCK = 75

RESTARTED = frozenset({PEER_LOST, STUCK})  # by a supervisor; 42 is the scheduler's to start again

_MEANING = {
  DONE: 'finished',
  FAILED: 'failed',
  BAD_INPUT: 'bad input',
  PREEMPTED: 'preempted, saved',
  PEER_LOST: 'a peer was lost',
  DIVERGED: 'diverged',
  SAVE_FAILED: 'could not save',
  STUCK: 'stuck',
}


def describe(code: int) -> str:
  """Says what an exit status means; a negative one is a signal, as in `subprocess`.

  Example:
    >>> describe(43), describe(-9)
    ('a peer was lost (code 43)', 'killed by SIGKILL')
  """
  if code < 0:
    names = {s.value: s.name for s in signal.Signals}
    return f'killed by {names.get(-code, f"signal {-code}")}'
  return f'{_MEANING.get(code, "failed")} (code {code})'


def leave(code: int) -> NoReturn:
  """Ends the process with this code now, whatever its threads and peers do.

  After a peer is lost an ordinary exit hangs in the runtime's shutdown barrier and ends in SIGABRT,
  so the code would be lost with it. No `finally` and no `atexit` runs: close files before.
  """
  for stream in (sys.stdout, sys.stderr):
    # A closed pipe must not cost the exit code.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      stream.flush()
  os._exit(code)
