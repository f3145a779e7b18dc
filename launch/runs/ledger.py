"""The run's ledger: what happened and when, a line of JSON each, never rewritten.

Standard library only, as the supervisor writes to it without any JAX.
"""

import contextlib
import datetime
import json
import os
import pathlib
import sys
from typing import Any


def append(workdir: pathlib.Path, event: str, **facts: Any) -> None:
  """Appends one line to `ledger.jsonl`: whole, as several processes may write at once.

  Where it cannot be written, stderr has it: a run must not end for want of its diary.
  """
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
  line = json.dumps({'time': now, 'event': event, **facts}, default=str) + '\n'
  try:
    descriptor = os.open(workdir / 'ledger.jsonl', os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    with contextlib.closing(os.fdopen(descriptor, 'rb+', buffering=0)) as file:
      # What a full disk cut short must not swallow the line after it.
      size = os.fstat(descriptor).st_size
      torn = size and os.pread(descriptor, 1, size - 1) != b'\n'
      file.write(b'\n' * bool(torn) + line.encode())
  except OSError as error:
    with contextlib.suppress(OSError):  # stderr may be a file of the same disk
      print(f'ledger.jsonl cannot be written ({error.strerror}): {line}', file=sys.stderr, end='')
