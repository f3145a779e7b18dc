"""Does anything around this process say that it is one of several? Read off the environment.

Standard library only: the supervisor asks before, and without, any JAX.
"""

import glob
from collections.abc import Mapping


def signs_of_a_pod(environ: Mapping[str, str]) -> str:
  """Returns what indicates a multi-process run, as words for a sentence; '' when nothing does.

  Slurm counts only inside a step: `SLURM_STEP_NODELIST` exists under srun alone, and a bare batch
  script is one process whatever its `SLURM_NTASKS`. A step or a slice of one process is one host.

  Args:
    environ: environment variables.

  Example:
    >>> signs_of_a_pod({'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '2'})
    'a Slurm step of 2 tasks'
    >>> signs_of_a_pod({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2'})
    ''
  """
  found = []
  if environ.get('JAX_COORDINATOR_ADDRESS'):
    found.append('JAX_COORDINATOR_ADDRESS')
  if environ.get('SLURM_STEP_NODELIST') and _number(environ, 'SLURM_NTASKS') > 1:
    found.append(f'a Slurm step of {environ["SLURM_NTASKS"]} tasks')
  if _number(environ, 'OMPI_COMM_WORLD_SIZE') > 1:
    found.append(f'an Open MPI job of {environ["OMPI_COMM_WORLD_SIZE"]} processes')
  workers = environ.get('TPU_PROCESS_ADDRESSES') or environ.get('TPU_WORKER_HOSTNAMES') or ''
  if len(workers.split(',')) > 1:
    found.append(f'a TPU slice of {len(workers.split(","))} hosts')
  if environ.get('MEGASCALE_COORDINATOR_ADDRESS') or _number(environ, 'MEGASCALE_NUM_SLICES') > 1:
    found.append('a TPU multislice')
  return ' and '.join(found)


def has_tpu_chips(environ: Mapping[str, str]) -> bool:
  """Whether TPU chips are in this machine and wanted: their slice may span hosts without a sign.

  A TPU VM knows its peers from the metadata server only, which JAX asks.
  """
  wanted = environ.get('JAX_PLATFORMS', '') in ('', 'tpu', 'tpu,cpu')
  return wanted and bool(glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*'))


def _number(environ, name):
  """The variable as a number; what is no number counts as a sign of several processes."""
  text = environ.get(name, '').strip()
  return int(text) if text.isdecimal() else 2 if text else 0
