"""Commands of setuptools that compile the native kernels into the wheel, where a compiler is.

Without one, or where compiling fails, the package is built without the library, and says so. With
it the wheel is `py3-none-<platform>`: the library is loaded by ctypes and knows no Python.
"""

import pathlib
import runpy

from setuptools.command import build_py

try:
  from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
  from wheel.bdist_wheel import bdist_wheel

_PACKAGE = pathlib.Path('jaxsparse', 'kernels', 'native')
_COMPILER = runpy.run_path(str(pathlib.Path(__file__).parent / _PACKAGE / 'compiler.py'))


class BuildWithKernels(build_py.build_py):
  """`build_py`, and the library beside its sources."""

  def run(self):
    """Copies the package and compiles the library into the copy."""
    build_py.build_py.run(self)
    if self.editable_mode:
      return  # `python -m jaxsparse.kernels.native.compiler` builds into the sources.
    try:
      self.announce(f'compiled {_COMPILER["build"](pathlib.Path(self.build_lib, _PACKAGE))}', 2)
    except (_COMPILER['CannotCompile'], OSError) as error:
      self.warn(f'jaxsparse is built without its native CPU kernels: {error}')


class WheelOfAnyPython(bdist_wheel):
  """`bdist_wheel` for every Python of one platform, or of any where the library is not in."""

  def run(self):
    """Builds first, for only then it is known whether the library could be compiled."""
    self.run_command('build')
    library = _PACKAGE / _COMPILER['LIBRARY']
    built = pathlib.Path(self.get_finalized_command('build_py').build_lib) / library
    self.root_is_pure = not built.exists()
    # Says where `install` puts the package: at the root of a wheel of one platform too.
    self.distribution.has_ext_modules = built.exists
    bdist_wheel.run(self)

  def get_tag(self):
    """`py3-none-any`, or `py3-none-` and the platform."""
    return ('py3', 'none', 'any' if self.root_is_pure else bdist_wheel.get_tag(self)[2])


COMMANDS = {'build_py': BuildWithKernels, 'bdist_wheel': WheelOfAnyPython}
