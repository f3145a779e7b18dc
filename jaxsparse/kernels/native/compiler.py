"""Compiles the library of native kernels. Needs a C++17 compiler and the headers in jaxlib.

`pip install` calls this where a compiler is found. Where the package came without the library,

    python -m jaxsparse.kernels.native.compiler

builds it beside the sources, if they may be written. `CXX` names the compiler.

Handlers carry the version of the headers they were compiled with, and an older XLA refuses a newer
one, so wheels are built with those of the oldest jaxlib supported (see pyproject.toml).
"""

import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

SOURCES = pathlib.Path(__file__).resolve().parent
LIBRARY = 'libjaxsparse.so'
_X86 = {'x86_64', 'AMD64'}
VNNI = ('-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl', '-mavx512vnni', '-mfma')
# A source, and what the machine it is for has beyond the least.
_UNITS = {'plain': (), 'products': (), 'handlers': ()}
_UNITS_X86 = {'avx2': ('-mavx2', '-mfma'), 'avx512': VNNI}
# At -O3 GCC unrolls what is unrolled already, and spills registers.
_FLAGS = ('-O2', '-ftree-vectorize', '-fvect-cost-model=dynamic', '-std=c++17', '-fPIC',
          '-fvisibility=hidden', '-ffp-contract=fast', '-fno-math-errno', '-pthread')


class CannotCompile(RuntimeError):
  """No compiler, no headers, or a compiler that fails; the message says which."""


def compiler() -> str:
  """The C++ compiler: `CXX`, or the first of c++, g++ and clang++ there is.

  Raises:
    CannotCompile: there is none.
  """
  asked = os.environ.get('CXX')
  for name in [asked] if asked else ['c++', 'g++', 'clang++']:
    found = shutil.which(name)
    if found:
      return found
  where = f'CXX={asked} is not a program' if asked else 'no c++, g++ or clang++ on PATH'
  raise CannotCompile(f'{where}.')


def headers() -> pathlib.Path:
  """The folder of XLA's FFI headers, in the jaxlib of this interpreter.

  Raises:
    CannotCompile: there is no jaxlib.
  """
  spec = importlib.util.find_spec('jaxlib')
  if spec is None or spec.origin is None:
    raise CannotCompile('jaxlib, which has the FFI headers, is not installed.')
  return pathlib.Path(spec.origin).parent / 'include'


def build(folder: str | os.PathLike, *, flags: tuple[str, ...] = ()) -> pathlib.Path:
  """Compiles the library into `folder` and returns its path.

  Args:
    folder: where `LIBRARY` goes; made where missing.
    flags: more flags of the compiler, for example `('-fsanitize=address',)`.

  Raises:
    CannotCompile: there is no compiler, there are no headers, or compiling failed.
  """
  if os.name != 'posix':
    raise CannotCompile(f'only built on POSIX systems so far, and this is {sys.platform}.')
  cxx, include = compiler(), headers()
  units = _UNITS | (_UNITS_X86 if platform.machine() in _X86 else {})
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as scratch:
    objects = {name: f'{scratch}/{name}.o' for name in units}
    commands = [[cxx, *_FLAGS, *own, *flags, '-isystem', str(include), '-c',
                 str(SOURCES / f'{name}.cc'), '-o', objects[name]]
                for name, own in units.items()]
    _run(commands)
    # The C++ runtime comes along, so that the library asks nothing of the system but libc.
    runtime = ['-static-libstdc++', '-static-libgcc', '-Wl,--exclude-libs,ALL', '-s']
    runtime = runtime if sys.platform == 'linux' and not flags else []
    linked = f'{scratch}/{LIBRARY}'
    _run([[cxx, '-shared', '-pthread', *flags, *objects.values(), *runtime, '-o', linked]])
    # Renamed into place: a process that has the old one open keeps it.
    shutil.copy(linked, folder / f'{LIBRARY}.new')
    os.replace(folder / f'{LIBRARY}.new', folder / LIBRARY)
  return folder / LIBRARY


def _run(commands):
  try:
    running = [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
               for c in commands]
  except OSError as error:
    raise CannotCompile(f'{commands[0][0]} does not start: {error}') from error
  answers = [(p.communicate()[1], p.returncode) for p in running]
  for said, code in answers:
    if code:
      raise CannotCompile(f'{commands[0][0]} failed:\n{said.strip()[-2000:]}')


def main() -> int:
  """Builds beside the sources; says where, or why not."""
  try:
    path = build(SOURCES)
  except (CannotCompile, OSError) as error:
    sys.stderr.write(f'{error}\n')
    return 1
  sys.stdout.write(f'{path}\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
