"""Measured times of products, kept in one JSON file a user between processes.

The file is written whole (a temporary name, fsync, rename), so a reader sees an old table or a new
one. What cannot be read is measured again. Times of another machine, or of another version of jax,
are never used.
"""

import json
import os
import pathlib
import platform
import tempfile

import jax
import jaxlib
from absl import logging

_FORM = 1   # of the file


def default_path() -> pathlib.Path:
  """`$JAXSPARSE_CACHE`, or `jaxsparse` in the user's cache folder, with `costs.json` in it."""
  folder = os.environ.get('JAXSPARSE_CACHE')
  if not folder:
    above = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(above) / 'jaxsparse'
  return pathlib.Path(folder) / 'costs.json'


def machine() -> str:
  """What a measured time depends on besides the product: processor, cores, versions."""
  device = jax.devices()[0]
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return '; '.join([_processor(), f'{cores} cores', device.platform, device.device_kind,
                    f'jax {jax.__version__}', f'jaxlib {jaxlib.__version__}'])


def read(path: pathlib.Path) -> dict[str, dict]:
  """This machine's table, `{key: entry}`; empty where there is none, or none to be trusted."""
  return _whole(path).get(machine(), {})


def write(path: pathlib.Path, found: dict[str, dict]) -> None:
  """Adds entries to this machine's table. A folder that cannot be written is said in the log."""
  tables = _whole(path)
  tables.setdefault(machine(), {}).update(found)
  text = json.dumps({'form': _FORM, 'machines': tables}, indent=1, sort_keys=True)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile('w', dir=path.parent, prefix=path.name, suffix='.writing',
                                     delete=False, encoding='utf-8') as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(file.name, path)
  except OSError as error:
    logging.warning('Measured costs are not kept: %s.', error)


def _whole(path):
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    tables = content['machines'] if content['form'] == _FORM else {}
    if not all(_is_table(table) for table in tables.values()):
      raise ValueError('an entry is no table of times')
    return tables
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    logging.warning('%s cannot be read and will be measured anew: %s.', path, error)
    return {}


def _is_table(table):
  return all(isinstance(time, float) and time > 0 for entry in table.values()
             for time in entry.values())


def _processor():
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      for line in file:
        if line.startswith('model name'):
          return line.partition(':')[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()
