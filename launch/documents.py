"""Small JSON files between processes: whole or not at all, and nothing where they are damaged.

Standard library only, for keepers and supervisors, which work where jax does not.
"""

import json
import os
from collections.abc import Mapping
from typing import Any


def read(path: str | os.PathLike) -> dict[str, Any] | None:
  """Returns the JSON object of a file, or None where there is none."""
  try:
    with open(path, encoding='utf-8') as file:
      value = json.load(file)
  except (OSError, ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def write(path: str | os.PathLike, value: Mapping[str, Any]) -> None:
  """Writes JSON so that a reader sees the old content or the new."""
  partial = f'{path}.{os.getpid()}.partial'
  with open(partial, 'w', encoding='utf-8') as file:
    json.dump(value, file)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)
