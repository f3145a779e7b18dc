"""A thousand random calls of the native products, right and wrong, under sanitizers."""

import pathlib
import platform
import subprocess

import pytest

from jaxsparse.kernels.native import compiler
from jaxsparse.kernels.native import library

_HERE = pathlib.Path(__file__).parent
_FLAGS = ('-g', '-O1', '-std=c++17', '-pthread', '-fsanitize=address,undefined',
          '-fno-sanitize-recover=all', '-Wno-psabi')
_X86 = platform.machine() == 'x86_64'


def _program(folder, units):
  """Compiles `{unit: flags}` and the driver into one program."""
  try:
    cxx = compiler.compiler()
  except compiler.CannotCompile as error:
    pytest.skip(str(error))
  sources = {compiler.SOURCES / f'{name}.cc': flags for name, flags in units.items()}
  sources[_HERE / 'fuzz.cc'] = ()
  objects = [str(folder / f'{source.stem}.o') for source in sources]
  running = [
    subprocess.Popen([cxx, *_FLAGS, *flags, '-I', str(compiler.SOURCES), '-c', str(source),
                      '-o', target])
    for (source, flags), target in zip(sources.items(), objects)
  ]
  codes = [p.wait() for p in running]
  assert not any(codes)
  subprocess.run([cxx, *_FLAGS, *objects, '-o', str(folder / 'fuzz')], check=True)
  return str(folder / 'fuzz')


def _check(found, name):
  assert found.returncode == 0, f'{found.stdout[-2000:]}\n{found.stderr[-4000:]}'
  assert found.stdout == f'{name}: 1000 calls, 0 wrong\n'


@pytest.mark.slow
def test_a_thousand_random_calls_of_each_instruction_set(tmp_path):
  units = {'plain': (), 'products': ()}
  if _X86:
    units |= {'avx2': ('-mavx2', '-mfma'), 'avx512': compiler.VNNI}
  program, ran = _program(tmp_path, units), []
  for name in library.INSTRUCTION_SETS:
    found = subprocess.run([program, name, '1000'], capture_output=True, text=True)
    if found.returncode != 2:  # else this machine has not that instruction set
      _check(found, name)
      ran.append(name)
  assert 'plain' in ran


@pytest.mark.slow
@pytest.mark.skipif(not _X86, reason='the sources for AVX-512 are for x86-64')
def test_the_arithmetic_for_avx512_where_it_is_emulated(tmp_path):
  # The unit takes the place of the plain one, which every machine may run.
  instead = ('-DkAvx512=kPlain',)
  emulated = ('-D__AVX512F__', '-I', str(_HERE / 'emulated'), *instead)
  program = _program(tmp_path, {'avx512': emulated, 'avx2': ('-mavx2', '-mfma'),
                                'products': instead})
  _check(subprocess.run([program, 'avx512', '1000'], capture_output=True, text=True), 'avx512')
