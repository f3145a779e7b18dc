"""The library of native kernels: found, loaded and registered with jax at its first use.

It is a plain C library, loaded without Python's ABI. `JAXSPARSE_NATIVE` in the environment chooses
the instruction set (`plain`, `avx2` or `avx512`) or turns the kernels off (`off`).
"""

import ctypes
import functools
import os
import pathlib
from typing import NamedTuple

import jax

FILE = pathlib.Path(__file__).resolve().parent / 'libjaxsparse.so'
INSTRUCTION_SETS = ('plain', 'avx2', 'avx512')
_TARGETS = ('vectors', 'columns16', 'columns32', 'vector_matrix', 'tiles', 'sparse_tiles',
            'nibbles')


class Status(NamedTuple):
  """Whether the kernels can be used, with which instruction set, or why not."""

  instruction_set: str | None
  reason: str


def available() -> bool:
  """Whether native kernels run in this process."""
  return status().instruction_set is not None


@functools.cache
def status() -> Status:
  """What there is; loads and registers the library at the first call."""
  asked = os.environ.get('JAXSPARSE_NATIVE', '')
  if asked == 'off':
    return Status(None, 'turned off by JAXSPARSE_NATIVE=off')
  if asked and asked not in INSTRUCTION_SETS:
    raise ValueError(f'JAXSPARSE_NATIVE={asked!r} is none of off, {", ".join(INSTRUCTION_SETS)}.')
  if not FILE.exists():
    return Status(None, 'not built: no C++ compiler when jaxsparse was installed; '
                        '`python -m jaxsparse.kernels.native.compiler` builds it')
  try:
    library = ctypes.CDLL(str(FILE))
  except OSError as error:
    return Status(None, f'{FILE.name} does not load: {error}')
  library.jaxsparse_instruction_set.restype = ctypes.c_char_p
  library.jaxsparse_use_instruction_set.restype = ctypes.c_bool
  library.jaxsparse_use_instruction_set.argtypes = [ctypes.c_char_p]
  if asked and not library.jaxsparse_use_instruction_set(asked.encode()):
    return Status(None, f'JAXSPARSE_NATIVE={asked}, which this machine has not')
  for name in _TARGETS:
    handler = jax.ffi.pycapsule(getattr(library, f'jaxsparse_{name}'))
    jax.ffi.register_ffi_target(f'jaxsparse_{name}', handler, platform='cpu')
  return Status(library.jaxsparse_instruction_set().decode(), 'loaded')
