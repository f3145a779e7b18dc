"""What made the numbers: command, date, class of machine, versions. No host, user or path."""

import datetime
import importlib.metadata
import os
import platform

import jax


def provenance(command: str, **more: str) -> dict[str, str]:
  """Returns what a reader needs to make the numbers again.

  Args:
    command: what was typed.
    **more: further facts, e.g. `seed='0'`.

  Example:
    >>> list(provenance('make demo', seed='0'))
    ['Command', 'Date', 'Machine', 'Versions', 'Seed']
  """
  device = jax.devices()[0]
  kind = '' if device.platform == 'cpu' else f', {device.device_kind}'
  names = ('jaxsparse', 'jax', 'flax', 'optax')
  versions = [f'Python {platform.python_version()}']
  versions += [f'{name} {version}' for name in names if (version := _version(name))]
  return {
    'Command': command,
    'Date': f'{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC',
    'Machine': f'{platform.machine()}, {os.cpu_count()} cores, jax on {device.platform}{kind}',
    'Versions': ', '.join(versions),
  } | {key[:1].upper() + key[1:].replace('_', ' '): value for key, value in more.items()}


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None  # the library also runs from its source tree
