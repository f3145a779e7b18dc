"""What can multiply packed weights on this machine, and why something cannot."""

import importlib.util
from typing import NamedTuple

from jaxsparse.kernels.native import library

_GPU_PLUGINS = ('jax_cuda13_plugin', 'jax_cuda12_plugin', 'jax_rocm7_plugin', 'jax_rocm60_plugin')


class Backend(NamedTuple):
  """One way to run products: its name, whether it is there, and what or why not."""

  name: str
  available: bool
  detail: str


class Backends(tuple):
  """The backends, as rows of a table when printed.

  Example:
    >>> print(backends())  # doctest: +ELLIPSIS
    xla      yes  ...
    native   ...
  """

  __slots__ = ()

  def __getitem__(self, key):
    """The backend of a name, or at a position."""
    if isinstance(key, str):
      found = {b.name: b for b in self}
      if key not in found:
        raise KeyError(f'{key!r} is no backend; known: {", ".join(found)}.')
      return found[key]
    return super().__getitem__(key)

  def __str__(self):
    return '\n'.join(f'{b.name:8s} {"yes" if b.available else "no":3s}  {b.detail}' for b in self)

  __repr__ = __str__


def backends() -> Backends:
  """What is installed to run packed weights with. Starts no device.

  Returns:
    `xla`, `native` (kernels in C++ for CPUs), `tpu` (Pallas kernels through Mosaic) and `gpu`
    (through Triton), each with what it is, or why it is not there.

  Example:
    >>> backends()['xla'].available
    True
  """
  status = library.status()
  native = (f'kernels in C++ for CPUs, {status.instruction_set}' if status.instruction_set
            else status.reason)
  return Backends((
      Backend('xla', True, 'every product, on every device that jax has'),
      Backend('native', status.instruction_set is not None, native),
      _pallas('tpu', ('libtpu',), "libtpu is not installed: pip install 'jaxsparse[tpu]'"),
      _pallas('gpu', _GPU_PLUGINS, "no plugin of jax is installed: pip install 'jaxsparse[cuda]'"),
  ))


def _pallas(name, plugins, missing):
  found = next((p for p in plugins if importlib.util.find_spec(p)), None)
  there = f'Pallas kernels, compiled by {found}; they run where a {name.upper()} is'
  return Backend(name, found is not None, there if found else missing)
