"""Points as a Slurm job array, through submitit.

Jobs outlive the sweep that submitted them: started again, it finds those still queued or running
and follows them. What a job says is the keeper's JSON; submitit's own files are never read here,
and lie in a folder only their owner may open.
"""

import contextlib
import math
import pathlib
import re
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launch import documents
from launch.sweeps import keeper
from launch.sweeps import places

_ROOT = str(pathlib.Path(__file__).resolve().parents[3])
_POLL_SECONDS = 5.0
_SIGNAL_SECONDS = 90  # before its limit a job is told to save
_WORD = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.,:=/-]{0,127}')
_ID = re.compile(r'[0-9]+(_[0-9]+)?')
_OVER = {
  'BOOT_FAIL',
  'CANCELLED',
  'COMPLETED',
  'DEADLINE',
  'FAILED',
  'NODE_FAIL',
  'OUT_OF_MEMORY',
  'PREEMPTED',
  'REVOKED',
  'TIMEOUT',
}


class Cluster(NamedTuple):
  """What a job asks of the cluster; empty and zero values leave the cluster's defaults.

  Attributes:
    partition: name of a partition.
    account: name of an account.
    gres: generic resources, such as `gpu:1`.
    constraint: feature of the nodes.
    cpus: cores a point.
    memory_gb: memory a point, in gigabytes.
  """

  partition: str = ''
  account: str = ''
  gres: str = ''
  constraint: str = ''
  cpus: int = 1
  memory_gb: float = 0.0


class Point:
  """What submitit calls on a node."""

  def __init__(self, job: keeper.Job):
    self.job = job

  def __call__(self) -> None:
    """Runs the point; the outcome is in its state file."""
    self._keeper = keeper.Keeper(self.job)
    keeper.attend(self._keeper)

  def checkpoint(self) -> Any:
    """Before the time limit or a preemption: lets the run save, then asks to be queued again."""
    import submitit

    self._keeper.stop_and_wait()
    return submitit.helpers.DelayedSubmission(Point(self.job))


class Queue:
  """The submitted jobs; made by `start`."""

  def __init__(self, ids: Mapping[str, str], jobs: Sequence[keeper.Job]):
    self.ids = dict(ids)
    self._states = {job.name: job.state for job in jobs}
    self._suspects: set[str] = set()
    self._asked = time.monotonic()

  def lost(self) -> dict[str, str]:
    """Returns why, for every point whose job has left the queue without an outcome."""
    if time.monotonic() < self._asked + _POLL_SECONDS:
      return {}
    self._asked = time.monotonic()
    silent = {n: i for n, i in self.ids.items() if not _has_ended(self._states[n])}
    states = queue_states(silent.values())
    if states is None:
      return {}
    gone = {name for name, text in silent.items() if text not in _alive(states)}
    # Files of another node may take a moment to show.
    lost, self._suspects = gone & self._suspects, gone
    return {
      name: f'Slurm job {silent[name]} ended without a word ({states.get(silent[name], "gone")})'
      for name in lost
    }


def _alive(states):
  return {text for text, state in states.items() if state not in _OVER}


def _has_ended(path):
  return (documents.read(path) or {}).get('status') in ('finished', 'failed')


def queue_states(ids) -> dict[str, str] | None:
  """Returns the state of every job the queue knows, or None where the queue does not answer."""
  ids = sorted(ids)
  if not ids:
    return {}
  command = ['squeue', '--noheader', '--array', '--states=all', '--format=%i %T']
  try:
    done = subprocess.run(
      [*command, f'--jobs={",".join(ids)}'], capture_output=True, text=True, timeout=60, check=False
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  if done.returncode:
    return {} if 'Invalid job id' in done.stderr else None
  pairs = (line.split() for line in done.stdout.splitlines())
  return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def check(cluster: Cluster, workdir: str) -> None:
  """Raises a ValueError for what could mean something to sbatch's script beyond its value."""
  for name in ('partition', 'account', 'gres', 'constraint'):
    value = getattr(cluster, name)
    if value and not _WORD.fullmatch(value):
      raise ValueError(f'--slurm_{name}: letters, digits and _.,:=/- expected, got {value!r}.')
  if '%' in workdir:
    raise ValueError(f'--workdir: Slurm replaces % in paths; choose one without, got {workdir!r}.')


@contextlib.contextmanager
def start(
  jobs: Sequence[keeper.Job],
  *,
  workers: int,
  folder: pathlib.Path,
  cluster: Cluster,
) -> Iterator[Queue]:
  """Submits jobs, or finds them in the queue; they stay there when the block ends.

  Args:
    jobs: at least one.
    workers: the most of them at a time.
    folder: for submitit's files and the list of jobs; made with mode 0700.
    cluster: what a job asks for.

  Raises:
    ValueError: submitit or Slurm is missing, or the folder is not this user's alone.
  """
  places.private(folder)
  submitted = {
    name: text
    for name, text in (documents.read(folder / 'jobs.json') or {}).items()
    if isinstance(text, str) and _ID.fullmatch(text)
  }
  # A job that has said how it ended is leaving the queue, whatever the queue says yet.
  followed = [job for job in jobs if job.name in submitted and not _has_ended(job.state)]
  known = {job.name: submitted[job.name] for job in followed}
  states = queue_states(known.values())
  if states is None:
    raise ValueError('--engine=slurm: squeue does not answer; is this a Slurm cluster?')
  ids = {name: text for name, text in known.items() if text in _alive(states)}
  fresh = [job for job in jobs if job.name not in ids]
  if fresh:
    for job in fresh:
      pathlib.Path(job.state).unlink(missing_ok=True)
    ids |= _submit(fresh, workers, folder, cluster)
    documents.write(folder / 'jobs.json', {**submitted, **ids})
  yield Queue(ids, jobs)


def _submit(jobs, workers, folder, cluster):
  try:
    import submitit
  except ImportError as error:
    message = "--engine=slurm needs submitit: pip install '.[launch]'."
    raise ValueError(message) from error
  tries = 1 + max(job.retries for job in jobs)
  seconds = max(job.seconds or 0 for job in jobs) * tries + _SIGNAL_SECONDS + 60
  asked = {
    'slurm_partition': cluster.partition or None,
    'slurm_account': cluster.account or None,
    'slurm_gres': cluster.gres or None,
    'slurm_constraint': cluster.constraint or None,
    'mem_gb': cluster.memory_gb or None,
  }
  try:
    executor = submitit.AutoExecutor(folder=folder, cluster='slurm')
    executor.update_parameters(
      name='jaxsparse',
      timeout_min=math.ceil(seconds / 60),
      cpus_per_task=cluster.cpus,
      slurm_array_parallelism=workers,
      slurm_signal_delay_s=_SIGNAL_SECONDS,
      slurm_setup=[f'export PYTHONPATH={shlex.quote(_ROOT)}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
      slurm_additional_parameters={'requeue': True},
      **{name: value for name, value in asked.items() if value is not None},
    )
    points = [Point(job) for job in jobs]
    # An array of one is no array to submitit.
    sent = executor.submit_array(points) if len(points) > 1 else [executor.submit(points[0])]
  except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
    raise ValueError(f'--engine=slurm: nothing could be submitted: {error}') from error
  return {job.name: str(s.job_id) for job, s in zip(jobs, sent)}
