"""Strictness for every test: CPU with 8 host devices, no silent rank promotion, fixed examples.

Set before jax is first imported, because the number of devices and the platform are read once.
"""

import importlib.metadata
import os
import pathlib
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
# A cache shared between runs would hide a recompilation, and between workers be a race.
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
# The suite compiles thousands of tiny programs and runs each once or twice: LLVM's optimizations
# cost it 40 % of its time and save it nothing; fusions through MLIR cost 40 % of what is left.
_FLAGS = (
  '--xla_force_host_platform_device_count=8',
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_parallel_codegen_split_count=1',
)
# XLA ends the process at a flag that it does not know, and that of jaxlib 0.12 knows this no more.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS += ('--xla_cpu_use_fusion_emitters=false',)
_GIVEN = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join([_GIVEN, *(f for f in _FLAGS if f not in _GIVEN)]).strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

import jaxsparse  # noqa: E402, F401  the installed one, found before the root joins the path

# experiments, launch and the tests' own modules are no part of the wheel: they are found in the
# repository. The installed jaxsparse stays the installed one, for it is imported already.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

jax.config.update('jax_numpy_rank_promotion', 'raise')

hypothesis.settings.register_profile(
  'strict',
  deadline=None,
  derandomize=True,
  database=None,
  suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('strict')

# Records what another library answers, where that is installed; run by hand.
collect_ignore = ['golden/jaxpruner_record.py']


@pytest.fixture(scope='module', autouse=True)
def _forget_programs():
  """Drops what a module compiled: kept, a worker grows by gigabytes and its collector slows."""
  yield
  jax.clear_caches()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
  """Marks as slow the cases of a `sampled(n)` test beyond n, which are spread evenly."""
  cases = {}
  for item in items:
    mark = item.get_closest_marker('sampled')
    if mark is not None:
      cases.setdefault(id(mark), (mark.args[0], []))[1].append(item)
  for kept, found in cases.values():
    step = len(found) / min(kept, len(found))
    spread = {int(step * i) for i in range(min(kept, len(found)))}
    for number, item in enumerate(found):
      if number not in spread:
        item.add_marker(pytest.mark.slow)
