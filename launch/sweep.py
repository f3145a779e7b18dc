"""Runs a grid of points and reports them: `python -m launch.sweep --experiment=vision --grid=...`.

    python -m launch.sweep --experiment=vision --size=smoke --workers=2 \\
      --grid="transform=['nm(2, 4)', 'rigl(0.9)'] * seed=[0, 1, 2]"

Started again with the same directory it goes on where it stopped. Exit codes: 0 every point
finished, 1 some failed (the report names them), 2 bad input, 42 told to stop; all saved.
"""

import functools
import shlex

import jax
from absl import app
from absl import flags

from launch import programs
from launch.runs import overlay
from launch.sweeps import conductor
from launch.sweeps.engines import slurm
from launch.sweeps.engines import xmanager

_COMMAND = 'launch.sweep'
_EXPERIMENT = flags.DEFINE_string('experiment', None, 'A file of experiments/ that builds a task.')
_GRID = flags.DEFINE_string(
  'grid',
  None,
  'Points: name=[values] joined by * (product), + (concatenation) and zip(...); names are '
  'transform, seed, size and fields of the configuration.',
)
_SIZE = flags.DEFINE_string('size', '', 'Named configuration of every point that says no other.')
_SET = flags.DEFINE_string('set', '', 'Fields of every point, as launch.run takes them.')
_TRANSFORM = flags.DEFINE_string(
  'transform', 'identity()', 'Spelled transform of points that say no other; the default is dense.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of points that say no other.')
_OPTIONS = flags.DEFINE_string(
  'options', '', 'More flags of launch.run, as literals: --options="log_every=5, on_nan=\'stop\'".'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of the sweep. Default: runs/sweep-<experiment>-<date>-<time>.'
)
_ENGINE = flags.DEFINE_enum(
  'engine',
  'local',
  list(conductor.ENGINES),
  'Where points run: this machine (executorlib), a Slurm array (submitit), a cloud (XManager), or '
  'none: report what is there.',
)
_WORKERS = flags.DEFINE_integer('workers', 1, 'The most points at a time.', 1, 1024)
_POINT_MINUTES = flags.DEFINE_float(
  'point_minutes',
  1440.0,
  'Minutes a try of a point may take before it is ended: a day, longer than any honest point here.',
  0.001,
  100_000.0,
)
_RETRIES = flags.DEFINE_integer(
  'retries',
  1,
  'Tries after one that crashed or took too long. Bad input and divergence are never retried, '
  'a preemption does not count.',
  0,
  100,
)
_MAX_POINTS = flags.DEFINE_integer('max_points', 1000, 'The most points of a grid.', 1, 100_000)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print the commands and start nothing.')
_PARTITION = flags.DEFINE_string('slurm_partition', '', "Partition; '' is the cluster's default.")
_ACCOUNT = flags.DEFINE_string('slurm_account', '', "Account; '' is the cluster's default.")
_GRES = flags.DEFINE_string('slurm_gres', '', 'Generic resources of a point, such as gpu:1.')
_CONSTRAINT = flags.DEFINE_string('slurm_constraint', '', 'Feature its node must have.')
_CPUS = flags.DEFINE_integer('slurm_cpus', 1, 'Cores of a point.', 1, 4096)
_MEMORY = flags.DEFINE_float('slurm_memory_gb', 0.0, 'Gigabytes of a point; 0 is the default.', 0.0)
_XM_CLOUD = flags.DEFINE_enum(
  'xm_cloud', 'local', list(xmanager.CLOUDS), 'Where XManager runs points.'
)
_XM_REQUIREMENTS = flags.DEFINE_string(
  'xm_requirements', '', 'What a job needs, by XManager\'s names: --xm_requirements="tpu_v3=8".'
)
_XM_WORKDIR = flags.DEFINE_string(
  'xm_workdir', None, 'Directory of the sweep as the cloud sees it, such as /gcs/bucket/sweep.'
)
_REPEATED = ('experiment', 'size', 'set', 'transform', 'seed', 'options', 'grid')


def main(argv):
  """Hands the flags to the conductor; returns a documented exit code."""
  # Accelerators are the points' business: this process must not hold one.
  jax.config.update('jax_platforms', 'cpu')
  try:
    if len(argv) > 1:
      raise ValueError(f'Flags only, got {overlay.short(" ".join(argv[1:]))}.')
    if _EXPERIMENT.value is None:
      raise ValueError(f'--experiment is missing; known are {", ".join(overlay.experiments())}.')
    if _GRID.value is None:
      raise ValueError('--grid is missing, for example --grid="rate=[1e-3, 3e-3] * seed=[0, 1]".')
    return conductor.conduct(_settings())
  except (ValueError, OSError) as error:
    return programs.refuse(_COMMAND, error)


def _settings() -> conductor.Settings:
  return conductor.Settings(
    experiment=_EXPERIMENT.value,
    grid=_GRID.value,
    size=_SIZE.value,
    fields=_SET.value,
    transform=_TRANSFORM.value,
    seed=_SEED.value,
    options=_OPTIONS.value,
    workdir=_WORKDIR.value,
    engine=_ENGINE.value,
    workers=_WORKERS.value,
    point_minutes=_POINT_MINUTES.value,
    retries=_RETRIES.value,
    max_points=_MAX_POINTS.value,
    dry_run=_DRY_RUN.value,
    cluster=slurm.Cluster(
      partition=_PARTITION.value,
      account=_ACCOUNT.value,
      gres=_GRES.value,
      constraint=_CONSTRAINT.value,
      cpus=_CPUS.value,
      memory_gb=_MEMORY.value,
    ),
    cloud=xmanager.Cloud(
      name=_XM_CLOUD.value,
      requirements=overlay.parse(_XM_REQUIREMENTS.value, 'xm_requirements'),
      workdir=_XM_WORKDIR.value,
    ),
    command=_command(),
  )


def _command() -> str:
  """What to type to see these numbers again; where they lie is nobody else's business."""
  given = [f'--{n}={flags.FLAGS[n].value}' for n in _REPEATED if flags.FLAGS[n].present]
  return shlex.join(['python', '-m', 'launch.sweep', *given])


if __name__ == '__main__':
  app.run(main, flags_parser=functools.partial(programs.parse, _COMMAND))
