"""Points on a cloud, through XManager: one job a point, the same commands as everywhere.

`commands` says exactly what would run and needs no XManager. On a cloud the code goes into a
container built from this checkout, and runs write to a directory every job sees, such as the
`/gcs/<bucket>` that Vertex AI mounts.
"""

import asyncio
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

CLOUDS = {'local': 'Local', 'vertex': 'Vertex', 'kubernetes': 'Kubernetes'}
_ROOT = pathlib.Path(__file__).resolve().parents[3]
_TITLE = 'jaxsparse-sweep'
_BASE_IMAGE = 'python:3.12-slim'
_PROGRAM = ('-m', 'launch.run')
_EXTRAS = 'launch,models,tpu'


class Trial(NamedTuple):
  """One point: its name and the flags of `launch.run`."""

  name: str
  flags: tuple[str, ...]


class Cloud(NamedTuple):
  """Where the jobs run.

  Attributes:
    name: of `CLOUDS`.
    requirements: of a job, by XManager's names, such as `{'tpu_v3': 8}`.
    workdir: directory of the sweep as every job sees it; None for that of this machine.
  """

  name: str = 'local'
  requirements: Mapping[str, float] = {}
  workdir: str | None = None


def check(cloud: Cloud) -> None:
  """Raises a ValueError for a cloud that could not run or whose results would be lost."""
  workdir = cloud.workdir
  if cloud.name != 'local' and not workdir:
    raise ValueError(
      f"--xm_cloud={cloud.name} needs --xm_workdir, a directory every job sees; a container's own "
      'goes with the container.'
    )
  if workdir and ('..' in workdir or not re.fullmatch(r'/[A-Za-z0-9_./-]*', workdir)):
    raise ValueError(f'--xm_workdir: a path of letters, digits and _.-/ expected, got {workdir!r}.')
  for name, value in cloud.requirements.items():
    if type(value) not in (int, float) or not value > 0:
      raise ValueError(f'--xm_requirements: {name} takes a positive number, got {value!r}.')


def commands(trials: Sequence[Trial], cloud: Cloud, parallel: int) -> list[str]:
  """Returns what XManager would be given: a heading, then one shell command a job.

  Args:
    trials: at least one.
    cloud: where.
    parallel: the most jobs at a time.
  """
  asked = ', '.join(f'{name}={value}' for name, value in cloud.requirements.items())
  heading = [
    f"# XManager experiment '{_TITLE}': {len(trials)} jobs, at most {parallel} at a time",
    f'# executor: xm_local.{CLOUDS[cloud.name]}({asked})',
  ]
  if cloud.name == 'local':
    program = [sys.executable, *_PROGRAM]
  else:
    program = ['python3', *_PROGRAM]
    heading += [f'# container: FROM {_BASE_IMAGE}', *(f'#   {step}' for step in _steps())]
  return [*heading, *(shlex.join([*program, *trial.flags]) for trial in trials)]


def _steps():
  return [
    'WORKDIR /jaxsparse',
    f'COPY {_ROOT.name}/ /jaxsparse',
    f"RUN pip install --no-cache-dir '.[{_EXTRAS}]'",
  ]


def launch(trials: Sequence[Trial], cloud: Cloud, parallel: int) -> list[str]:
  """Runs the jobs and waits; returns the names of those that failed.

  Raises:
    ValueError: XManager is not installed.
  """
  try:
    from xmanager import xm
    from xmanager import xm_local
  except ImportError as error:
    message = '--engine=xmanager needs xmanager: pip install xmanager; --dry_run does without.'
    raise ValueError(message) from error
  failed: list[str] = []
  try:
    asyncio.run(_launch(xm, xm_local, trials, cloud, parallel, failed))
  except RuntimeError:
    # Leaving its experiment, XManager raises once more what a failed job of this machine raised.
    if not failed:
      raise
  return failed


async def _launch(xm, xm_local, trials, cloud, parallel, failed) -> None:
  executor_type = getattr(xm_local, CLOUDS[cloud.name])
  requirements: dict[str, Any] = {}
  if cloud.requirements:
    requirements['requirements'] = xm.JobRequirements(**cloud.requirements)
  # XManager starts everything at once and stops the rest when one fails: neither is wanted here.
  free = asyncio.Semaphore(parallel)
  async with xm_local.create_experiment(experiment_title=_TITLE) as experiment:
    [executable] = experiment.package([_packageable(xm, executor_type.Spec(), cloud.name)])

    async def run(trial):
      job = xm.Job(
        executable=executable, executor=executor_type(**requirements), args=list(trial.flags)
      )
      async with free:
        try:
          unit = await experiment.add(job)
          await unit.wait_until_complete()
        except xm.ExperimentUnitError:
          failed.append(trial.name)

    await asyncio.gather(*map(run, trials))


def _packageable(xm, spec, cloud):
  if cloud == 'local':
    return xm.Packageable(
      executable_spec=xm.Binary(path=sys.executable),
      executor_spec=spec,
      args=xm.SequentialArgs.from_collection(list(_PROGRAM)),
      env_vars={'PYTHONPATH': str(_ROOT)},
    )
  return xm.Packageable(
    executable_spec=xm.PythonContainer(
      entrypoint=xm.ModuleName(_PROGRAM[1]),
      path=str(_ROOT),
      base_image=_BASE_IMAGE,
      docker_instructions=_steps(),
    ),
    executor_spec=spec,
  )
