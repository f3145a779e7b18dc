"""What libtpu says of the products compiled for chips that are not there, as JSON.

In a process of its own: devices and platform are chosen once. Run by `compiled`.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from launch.pods import topology

CHIPS = ('v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')
_OF_BFLOAT16 = {'int8': 0.5, 'int4': 0.25, 'int8 x int8': 0.5, 'int4 in groups': 0.25}


@functools.cache
def compiled() -> dict:
  """{chip: {product: figures}}."""
  pytest.importorskip('libtpu', reason='libtpu is not installed: pip install libtpu')
  script = pathlib.Path(__file__).with_name('aot_products.py')
  code = f'import runpy; runpy.run_path({str(script)!r}, run_name="__main__")'
  keep = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'JAX_PLATFORMS': 'cpu'}
  said = subprocess.run([sys.executable, '-c', code, *CHIPS], env=keep | topology.environment(),
                        check=False, capture_output=True, text=True, timeout=300)
  assert said.returncode == 0, said.stderr[-2000:]
  return json.loads(said.stdout.splitlines()[-1])


def check_codes_alone(found: dict, temporaries: dict) -> None:
  """Asserts that each product reads its codes, writes no more than so many bytes, and how it runs.

  Args:
    found: {product: figures}.
    temporaries: {product: bytes at most}, of those that may write something.
  """
  assert {name: one['codes_of_bfloat16'] for name, one in found.items()} == _OF_BFLOAT16
  assert all(one['temporaries'] <= temporaries.get(name, 0) for name, one in found.items()), found
  assert found['int8 x int8']['integer'] and not found['int8']['integer']
  assert found['int4 in groups']['kernels'] == 1
