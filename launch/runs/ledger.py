"""The run's ledger: what happened and when, a line of JSON each, never rewritten.

Standard library only, as the supervisor writes to it without any JAX.
"""

import datetime
import json
import os
import pathlib
from typing import Any


def append(workdir: pathlib.Path, event: str, **facts: Any) -> None:
  """Appends one line to `ledger.jsonl`: whole, as several processes may write at once."""
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
  line = json.dumps({'time': now, 'event': event, **facts}, default=str) + '\n'
  descriptor = os.open(workdir / 'ledger.jsonl', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
  try:
    os.write(descriptor, line.encode())
  finally:
    os.close(descriptor)
