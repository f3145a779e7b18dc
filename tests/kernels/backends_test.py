"""What `backends` says, and how the native library is built."""

import os
import subprocess
import sys

import pytest

import jaxsparse as jsp
from jaxsparse.kernels.native import compiler
from jaxsparse.kernels.native import library


def test_every_backend_says_what_it_is_or_why_not():
  found = jsp.backends()
  assert [b.name for b in found] == ['xla', 'native', 'tpu', 'gpu']
  assert found['xla'].available and all(b.detail for b in found)
  assert str(found).count('\n') == 3 and found[0] is found['xla']
  with pytest.raises(KeyError, match='known: xla, native'):
    found['cuda']


def test_the_environment_turns_native_kernels_off_and_no_device_is_started():
  code = ('import jaxsparse, jax\n'
          'print(jaxsparse.backends())\n'
          'from jax._src import xla_bridge\n'
          'assert not xla_bridge.backends_are_initialized()\n')
  environment = {**os.environ, 'JAXSPARSE_NATIVE': 'off'}
  said = subprocess.run([sys.executable, '-c', code], env=environment, check=True,
                        capture_output=True, text=True).stdout
  assert 'native   no   turned off by JAXSPARSE_NATIVE=off' in said


@pytest.mark.skipif(not library.available(), reason=library.status().reason)
def test_the_library_is_loaded_with_an_instruction_set():
  assert library.status().instruction_set in library.INSTRUCTION_SETS


def test_building_without_a_compiler_says_so(monkeypatch, tmp_path):
  monkeypatch.setenv('CXX', str(tmp_path / 'missing'))
  with pytest.raises(compiler.CannotCompile, match='is not a program'):
    compiler.build(tmp_path)
  monkeypatch.delenv('CXX')
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(compiler.CannotCompile, match=r'no c\+\+, g\+\+ or clang\+\+ on PATH'):
    compiler.build(tmp_path)
  failing = tmp_path / 'c++'
  failing.write_text('#!/bin/sh\necho "what is this" >&2\nexit 3\n')
  failing.chmod(0o755)
  with pytest.raises(compiler.CannotCompile, match='what is this'):
    compiler.build(tmp_path / 'out')
  assert not (tmp_path / 'out' / compiler.LIBRARY).exists()
