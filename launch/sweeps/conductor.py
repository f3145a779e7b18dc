"""Conducts a sweep: checks all of it, hands its points to an engine, watches, reports.

Nothing here computes, and nothing here holds an accelerator. What a point is doing is read off its
directory, so a sweep that was killed has lost nothing when it is started again.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import sys
import time
from typing import NamedTuple

from jaxsparse import reports
from launch import documents
from launch import exits
from launch.runs import overlay
from launch.sweeps import gather
from launch.sweeps import grid
from launch.sweeps import keeper
from launch.sweeps import places as places_lib
from launch.sweeps import points
from launch.sweeps.engines import local
from launch.sweeps.engines import slurm
from launch.sweeps.engines import xmanager

ENGINES = ('local', 'slurm', 'xmanager', 'none')
_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LOOK_SECONDS = 0.5
_ENDED = ('finished', 'failed')


class Settings(NamedTuple):
  """What a sweep is asked for.

  Attributes:
    experiment: a file of experiments/.
    grid: text of the points.
    size: configuration of points that say no other, and so are the next three.
    fields: text of fields.
    transform: spelled form.
    seed: of everything random.
    options: text of further flags of `launch.run`.
    workdir: of the sweep; None for one named after the date.
    engine: one of `ENGINES`.
    workers: the most points at a time.
    point_minutes: a try of a point may take.
    retries: tries after one that crashed or took too long.
    max_points: the most points of a grid.
    dry_run: whether to print the commands and start nothing.
    cluster: what a Slurm job asks for.
    cloud: where XManager runs jobs.
    command: what was typed, for the report.
    program: module a point runs; tests put a small one in its place.
    grace_seconds: a run may take to save after SIGTERM.
  """

  experiment: str
  grid: str
  size: str = ''
  fields: str = ''
  transform: str = 'identity()'
  seed: int = 0
  options: str = ''
  workdir: str | None = None
  engine: str = 'local'
  workers: int = 1
  point_minutes: float = 1440.0
  retries: int = 1
  max_points: int = 1000
  dry_run: bool = False
  cluster: slurm.Cluster = slurm.Cluster()
  cloud: xmanager.Cloud = xmanager.Cloud()
  command: str = 'python -m launch.sweep'
  program: str = 'launch.run'
  grace_seconds: float = 30.0


class Plan(NamedTuple):
  """What was asked for, checked.

  Attributes:
    settings: as given.
    defaults: what points share.
    points: all of them.
    places: where files are.
  """

  settings: Settings
  defaults: points.Defaults
  points: list[points.Point]
  places: places_lib.Places


def conduct(settings: Settings) -> int:
  """Runs a sweep; returns one of the exit codes DONE, FAILED, PREEMPTED.

  Raises:
    ValueError: bad input; nothing was started.
  """
  plan = checked(settings)
  if settings.dry_run:
    print('\n'.join(commands(plan)))
    return exits.DONE
  with plan.places.alone():
    plan.places.record(settings.grid, plan.defaults, plan.points)
    stopped = _run(plan)
    failed = report(plan)
  if stopped:
    jobs = ' Jobs stay in the queue; scancel ends them.' if settings.engine == 'slurm' else ''
    print(f'Stopped; the same command goes on from here.{jobs}')
    return exits.PREEMPTED
  return exits.FAILED if failed else exits.DONE


def checked(settings: Settings) -> Plan:
  """Returns the plan of a sweep.

  Raises:
    ValueError: lists every point that cannot run, or says what else is wrong.
  """
  defaults = points.Defaults(
    experiment=settings.experiment,
    size=settings.size,
    transform=settings.transform,
    seed=settings.seed,
    fields=overlay.fields(settings.fields),
    options=overlay.parse(settings.options, 'options'),
  )
  known = points.known_names(settings.experiment, settings.size)
  found = grid.points(settings.grid, known=known, limit=settings.max_points)
  workdir = _workdir(settings)
  if settings.engine == 'slurm':
    slurm.check(settings.cluster, str(workdir))
  if settings.engine == 'xmanager':
    xmanager.check(settings.cloud)
  made = points.validated(defaults, found)
  return Plan(settings, defaults, made, places_lib.Places(workdir))


def _workdir(settings):
  date = time.strftime('%Y%m%d-%H%M%S')
  text = settings.workdir or f'runs/sweep-{settings.experiment}-{date}'
  if not text.isprintable():
    raise ValueError(f'--workdir={overlay.short(text)}: printable characters expected.')
  return pathlib.Path(text).expanduser().absolute()


def commands(plan: Plan) -> list[str]:
  """Returns what would run, quoted for a shell."""
  if plan.settings.engine == 'xmanager':
    return xmanager.commands(_trials(plan), plan.settings.cloud, plan.settings.workers)
  return [shlex.join(job.command) for job in _jobs(plan, plan.points)]


def _trials(plan):
  base = (plan.settings.cloud.workdir or str(plan.places.workdir)).rstrip('/')
  return [
    xmanager.Trial(point.name, tuple(points.argv(point, f'{base}/runs/{point.name}')))
    for point in plan.points
  ]


def _jobs(plan, todo) -> list[keeper.Job]:
  settings, places = plan.settings, plan.places
  before = [os.environ['PYTHONPATH']] if os.environ.get('PYTHONPATH') else []
  environment = {
    'JAX_COMPILATION_CACHE_DIR': str(places.cache),
    # Points of a sweep compile the same programs; jax alone keeps those that took a second.
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    'PYTHONPATH': os.pathsep.join([str(_ROOT), *before]),
  }
  program = (sys.executable, '-m', settings.program)
  return [
    keeper.Job(
      name=point.name,
      command=(*program, *points.argv(point, str(places.run(point.name)))),
      run=str(places.run(point.name)),
      log=str(places.log(point.name)),
      state=str(places.state(point.name)),
      lock=str(places.point_lock(point.name)),
      stop=str(places.stop),
      seconds=60 * settings.point_minutes,
      grace=settings.grace_seconds,
      retries=settings.retries,
      environment=environment,
    )
    for point in todo
  ]


def _run(plan) -> bool:
  """Runs what has not finished; returns whether it was told to stop before all of it had ended."""
  settings, places = plan.settings, plan.places
  todo = _unfinished(plan)
  if len(todo) < len(plan.points):
    print(f'{len(plan.points) - len(todo)} of {len(plan.points)} points are finished already.')
  if not todo or settings.engine == 'none':
    return False
  if settings.engine == 'xmanager':
    failed = xmanager.launch(_trials(plan), settings.cloud, settings.workers)
    print(f'{len(failed)} jobs failed. --engine=none reports, wherever the results are seen.')
    return False
  places.stop.unlink(missing_ok=True)
  jobs = _jobs(plan, todo)
  with contextlib.ExitStack() as stack:
    told = stack.enter_context(_signals())
    if settings.engine == 'local':
      for job in jobs:
        pathlib.Path(job.state).unlink(missing_ok=True)
      engine = stack.enter_context(local.start(jobs, workers=settings.workers))
    else:
      engine = stack.enter_context(
        slurm.start(jobs, workers=settings.workers, folder=places.engine, cluster=settings.cluster)
      )
    title = f'{settings.experiment}, {len(plan.points)} points'
    with reports.show_board(title) as update:
      return _watch(plan, {point.name for point in todo}, engine, told, update)


def _unfinished(plan):
  """The points left to run; with an engine, a result that reports nothing is one no longer."""
  todo = []
  for point in plan.points:
    run = plan.places.run(point.name)
    result = keeper.finished(run)
    try:
      if result is not None:
        gather.record(result)
        continue
    except ValueError:
      if plan.settings.engine != 'none':
        keeper.set_aside(run)
    todo.append(point)
  return todo


def _watch(plan, todo, engine, told, update) -> bool:
  places = plan.places
  ended = {p.name: gather.row(places, p) for p in plan.points if p.name not in todo}
  while True:
    lost = engine.lost()
    rows = []
    for point in plan.points:
      row = ended.get(point.name) or gather.row(places, point)
      if point.name in lost and row.status not in _ENDED:
        _record_loss(places, point.name, lost[point.name])
        row = gather.row(places, point)
      if row.status in _ENDED:
        ended[point.name] = row
      rows.append(row)
    update(rows)
    if len(ended) == len(plan.points):
      return False
    if told:
      if plan.settings.engine == 'local':
        places.stop.touch()
      return True
    time.sleep(_LOOK_SECONDS)


def _record_loss(places, name, reason):
  """What a keeper that is gone can no longer say."""
  outcome = {'status': 'finished', 'code': 0, 'attempts': 1}
  if keeper.finished(places.run(name)) is None:
    reason = '\n'.join([reason, *keeper.tail(places.log(name))])
    outcome = {'status': 'failed', 'code': None, 'reason': reason, 'attempts': 1}
  documents.write(places.state(name), outcome)


@contextlib.contextmanager
def _signals():
  """A list that is no longer empty once somebody asked this process to stop."""
  told, before = [], {}
  for number in (signal.SIGTERM, signal.SIGINT):
    before[number] = signal.signal(number, lambda number, _: told.append(number))
  try:
    yield told
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def report(plan: Plan) -> int:
  """Writes report.html and the tables; returns how many points have not finished."""
  places = plan.places
  runs = [gather.run(places, point) for point in plan.points]
  failed = [run for run in runs if run.status != 'finished']
  done = f'{len(runs) - len(failed)} of {len(runs)} points finished'
  page = reports.sweep_page(
    runs,
    title=f'Sweep of {plan.settings.experiment}',
    summary=f'{done}. Grid: {plan.settings.grid}',
    provenance=gather.provenance(places, plan.points, plan.settings.command),
  )
  files = {'report.html': page, 'results.csv': reports.csv_text(runs)}
  typed = reports.parquet(runs)
  files |= {} if typed is None else {'results.parquet': typed}
  for name, content in files.items():
    reports.write_whole(places.workdir / name, content)
  print(f'{done}: {places.workdir}/report.html')
  if failed:
    print(f'{len(failed)} did not:')
  for run in failed:
    first = run.reason.partition('\n')[0]
    print(f'  {run.name} ({run.status}): {overlay.short(first)[1:-1]}')
  return len(failed)
