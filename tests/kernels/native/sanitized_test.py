"""A thousand random calls of the native products, right and wrong, under sanitizers."""

import pathlib
import platform
import subprocess

import pytest

from jaxsparse.kernels.native import compiler
from jaxsparse.kernels.native import library

_FLAGS = ('-g', '-O1', '-std=c++17', '-pthread', '-fsanitize=address,undefined',
          '-fno-sanitize-recover=all')
_UNITS = {'plain': (), 'products': ()}
if platform.machine() == 'x86_64':
  _UNITS |= {'avx2': ('-mavx2', '-mfma'), 'avx512': compiler.VNNI}


@pytest.mark.slow
def test_a_thousand_random_calls(tmp_path):
  try:
    cxx = compiler.compiler()
  except compiler.CannotCompile as error:
    pytest.skip(str(error))
  sources = {compiler.SOURCES / f'{n}.cc': flags for n, flags in _UNITS.items()}
  sources[pathlib.Path(__file__).parent / 'fuzz.cc'] = ()
  objects = []
  for source, flags in sources.items():
    objects.append(str(tmp_path / f'{source.stem}.o'))
    subprocess.run([cxx, *_FLAGS, *flags, '-I', str(compiler.SOURCES), '-c', str(source),
                    '-o', objects[-1]], check=True)
  program = str(tmp_path / 'fuzz')
  subprocess.run([cxx, *_FLAGS, *objects, '-o', program], check=True)
  ran = []
  for name in library.INSTRUCTION_SETS:
    found = subprocess.run([program, name, '1000'], capture_output=True, text=True)
    if found.returncode == 2:
      continue  # this machine has not that instruction set
    assert found.returncode == 0, f'{found.stdout[-2000:]}\n{found.stderr[-4000:]}'
    assert found.stdout == f'{name}: 1000 calls, 0 wrong\n'
    ran.append(name)
  assert 'plain' in ran
