"""Runs one experiment: `python -m launch.run --experiment=vision --transform="rigl(0.9)"`.

The run directory holds everything; the same command resumes it, or says that it is finished. Exit
codes are those of `launch/exits.py`.
"""

import contextlib
import errno
import functools
import json
import os
import pathlib
import sys
import time
import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from absl import flags
from absl import logging
from jax.experimental import multihost_utils

import jaxsparse as jsp
from jaxsparse import reports
from launch import exits
from launch import programs
from launch.hosts import distributed
from launch.hosts import preemption
from launch.hosts import pulse
from launch.runs import evidence
from launch.runs import ledger
from launch.runs import loop
from launch.runs import metrics
from launch.runs import overlay
from launch.runs import rundir

_COMMAND = 'launch.run'
_EXPERIMENT = flags.DEFINE_string(
  'experiment', None, 'A file of experiments/: vision, language, sentence or filetype.'
)
_SIZE = flags.DEFINE_string(
  'size', '', "Named configuration of the experiment; '' is its default, 'smoke' a minute of CPU."
)
_SET = flags.DEFINE_string(
  'set',
  '',
  'Fields of the configuration to replace, as literals: --set="steps=100, model=\'vit\'".',
)
_TRANSFORM = flags.DEFINE_string(
  'transform',
  'identity()',
  'Spelled transform, such as "nm(2, 4) | fake_quantize(\'int8\')". Without at or rules of its own '
  "it is applied at the experiment's weights. The default trains dense.",
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seed (0 or more) of weights, data order and noise.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run directory. Default: runs/<experiment>-<date>-<time>.'
)
_CHECKPOINT_EVERY = flags.DEFINE_integer(
  'checkpoint_every', 100, 'Steps between checkpoints; the last step is always saved.', 1
)
_CALIBRATION_BATCHES = flags.DEFINE_integer(
  'calibration_batches',
  8,
  'First training batches shown to a transform that judges weights by data (wanda, snip, ...).',
  1,
)
_KEEP = flags.DEFINE_integer(
  'keep', 3, 'Newest checkpoints kept; with 1 a damaged one has no older to fall back to.', 1
)
_LOG_EVERY = flags.DEFINE_integer('log_every', 10, 'Steps between lines of metrics.', 1)
_ON_NAN = flags.DEFINE_enum(
  'on_nan',
  'stop',
  ['stop', 'rollback'],
  'What a diverged loss leads to: stop (exit code 44), or the newest checkpoint and later data.',
)
_MAX_LOSS = flags.DEFINE_float('max_loss', float('inf'), 'A loss above it counts as diverged.')
_MESH = flags.DEFINE_string(
  'mesh', '', 'Devices by axis, such as data:4,model:2. Default: all devices on data.'
)
_TENSORBOARD = flags.DEFINE_bool('tensorboard', True, 'Write TensorBoard files (tensorboardX).')
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ['auto', 'on', 'off'],
  'Several processes: on (an error where there is no pod), off, or auto (on inside a pod or a '
  'Slurm step, off elsewhere).',
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'host:port of process 0; only where the cluster does not say it.'
)
_PROCESS_COUNT = flags.DEFINE_integer('process_count', None, 'Processes in all; as above.', 1)
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process; as above.', 0)
_START_SECONDS = flags.DEFINE_integer(
  'start_seconds', 300, 'Seconds for all processes to appear before this one gives up.', 1
)
_HEARTBEAT = flags.DEFINE_integer(
  'heartbeat', 30, "Seconds after which jax takes a silent process for lost (jax's own is 100).", 5
)


# What a disk says that takes no more: the run goes on where it was once there is room.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class Asked(NamedTuple):
  """What the flags ask for, checked.

  Attributes:
    experiment: its name.
    module: its file.
    config: its configuration, seed included.
    mesh: sizes of the axes, -1 for all devices.
    workdir: the run directory.
  """

  experiment: str
  module: Any
  config: Any
  mesh: dict[str, int]
  workdir: pathlib.Path


def main(argv):
  """Checks every flag before anything starts; then runs, and leaves with a documented code."""
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.INFO)
    # Orbax and JAX tell at INFO what only their authors want to know.
    logging.get_absl_handler().addFilter(_is_ours)
  try:
    asked = _asked(argv)
    distributed.start(
      _DISTRIBUTED.value,
      coordinator=_COORDINATOR.value,
      process_count=_PROCESS_COUNT.value,
      process_id=_PROCESS_ID.value,
      heartbeat_seconds=_HEARTBEAT.value,
      start_seconds=_START_SECONDS.value,
    )
  except ValueError as error:
    return programs.refuse(_COMMAND, error)
  except distributed.Unreachable as error:
    logging.error('%s', error)
    distributed.leave(exits.PEER_LOST)
  try:
    code = _run(asked)
  except Exception as error:  # the last stop: every failure leaves a code and a reason
    code = _code_of(error)
    if code in (exits.PEER_LOST, exits.FAILED):
      traceback.print_exc()
    else:
      logging.error('%s', error)
    if jax.process_index() == 0 and not isinstance(error, rundir.Taken):
      rundir.fail(asked.workdir, code, f'{type(error).__name__}: {error}')
    if jax.process_count() > 1:
      distributed.leave(code)  # a barrier with peers that are gone would never be passed
    return code
  distributed.finish(code)
  return code


def _code_of(error) -> int:
  if distributed.is_peer_loss(error):
    return exits.PEER_LOST
  if isinstance(error, metrics.Damaged):
    return exits.BAD_INPUT
  full = isinstance(error, OSError) and error.errno in _NO_ROOM
  return exits.SAVE_FAILED if full else exits.FAILED


def _asked(argv) -> Asked:
  if len(argv) > 1:
    raise ValueError(f'Flags only, got {overlay.short(" ".join(argv[1:]))}.')
  if _EXPERIMENT.value is None:
    raise ValueError(f'--experiment is missing; known are {", ".join(overlay.experiments())}.')
  values = {**overlay.fields(_SET.value), 'seed': _SEED.value}
  config = overlay.configure(_EXPERIMENT.value, _SIZE.value, values)
  jsp.parse(_TRANSFORM.value)
  if _TENSORBOARD.value:
    metrics.require_tensorboard()
  if not _WORKDIR.value and (_PROCESS_COUNT.value or 1) > 1:
    raise ValueError('Several processes need a common --workdir.')
  workdir = pathlib.Path(_WORKDIR.value or rundir.default_workdir(_EXPERIMENT.value))
  try:
    workdir = workdir.expanduser().absolute()
    str(workdir).encode()  # checkpoints are not written where the name is no text
  except (RuntimeError, UnicodeEncodeError) as error:
    raise ValueError(f'--workdir={overlay.short(str(workdir))}: {error}') from error
  return Asked(
    experiment=_EXPERIMENT.value,
    module=overlay.load(_EXPERIMENT.value),
    config=config,
    mesh=overlay.mesh_shape(_MESH.value),
    workdir=workdir,
  )


def _run(asked: Asked) -> int:
  """Opens the run directory, works, and returns the exit code."""
  workdir, first = asked.workdir, jax.process_index() == 0
  with contextlib.ExitStack() as stack:
    watch = stack.enter_context(preemption.Watch())
    try:
      task = asked.module.build(asked.config)
      transform = overlay.recipe(_TRANSFORM.value, task.weights)
      mesh = loop.make_mesh(asked.mesh)
      _check_batch(asked.config, task.steps, mesh)
      extra = evidence.gathered(task, transform, batches=_CALIBRATION_BATCHES.value)
      program = loop.program(task, transform, mesh, **extra)
      described = rundir.describe(asked.experiment, _SIZE.value, asked.config, jsp.spell(transform))
      if extra:
        described['calibration_batches'] = _CALIBRATION_BATCHES.value
    except ValueError as error:
      return programs.refuse(_COMMAND, error)
    state = _agreed(lambda: _open(stack, workdir, described))
    if state not in ('new', 'resumed', 'finished'):
      return programs.refuse(_COMMAND, state)
    if state == 'finished':
      logging.info('Finished already: %s', workdir / 'result.json')
      return exits.DONE
    if first:
      versions = rundir.provenance()
      ledger.append(workdir, 'start', state=state, processes=jax.process_count(), **versions)
    return _work(asked, program, state, stack, watch)


def _check_batch(config, steps, mesh):
  size, parts = config.batch_size, mesh.shape['data']
  if steps and size % parts:
    raise ValueError(
      f'batch_size: found {size}, expected a multiple of the {parts} devices on the axis data; see '
      '--set=batch_size and --mesh.'
    )


def _open(stack, workdir, described) -> str:
  """The state of the run directory, or a sentence that says what is wrong with it."""
  try:
    stack.enter_context(rundir.locked(workdir))
    return rundir.open_run(workdir, described)
  except (ValueError, OSError, rundir.Taken) as error:
    return str(error)


def _agreed(ask) -> str:
  """What process 0 says, on every process."""
  if jax.process_count() == 1:
    return ask()
  said = np.zeros(4096, np.uint8)
  if jax.process_index() == 0:
    text = ask().encode()[:4096]
    said[: len(text)] = np.frombuffer(text, np.uint8)
  heard = bytes(np.asarray(multihost_utils.broadcast_one_to_all(said))).rstrip(b'\0')
  return heard.decode(errors='ignore')  # it may be cut within a letter


def _work(asked, program, state, stack, watch) -> int:
  """Trains, measures and writes the result; returns the exit code."""
  workdir, rank = asked.workdir, jax.process_index()
  first = rank == 0
  event = (lambda name, **facts: ledger.append(workdir, name, **facts)) if first else _ignore
  hosts = workdir / 'hosts' if pulse.SUPERVISOR in os.environ else None
  beat = stack.enter_context(pulse.Pulse(hosts, rank, count=jax.process_count()))
  settings = loop.Settings(
    checkpoint_every=_CHECKPOINT_EVERY.value,
    log_every=_LOG_EVERY.value,
    on_nan=_ON_NAN.value,
    max_loss=_MAX_LOSS.value,
  )
  started = time.perf_counter()
  try:
    with (
      jsp.CheckpointStore(workdir / 'checkpoints', program.transform, keep=_KEEP.value) as store,
      _progress(asked, program.task.steps, first) as advance,
    ):
      runner = loop.Loop(
        program,
        seed=asked.config.seed,
        store=store,
        open_metrics=lambda after: _metrics(workdir, after, first),
        settings=settings,
        watch=watch,
        pulse=beat,
        event=event,
        advance=advance,
      )
      ts = runner.run()
  except loop.Preempted as stop:
    event('preempted', step=stop.step)
    logging.warning('%s', stop)
    return exits.PREEMPTED
  except loop.Diverged as stop:
    return _failed(workdir, first, exits.DIVERGED, stop, stop.step)
  except loop.Mismatch as stop:
    return _failed(workdir, first, exits.BAD_INPUT, stop)
  except jsp.SaveError as stop:
    return _failed(workdir, first, exits.SAVE_FAILED, stop)

  def leave():
    event('preempted', step=ts.count)
    exits.leave(exits.PREEMPTED)

  watch.at_once(leave)  # all is saved, and an evaluation may take longer than a scheduler waits
  seconds = time.perf_counter() - started if state == 'new' else None
  beat.at(ts.count, 'evaluate')
  result = measure(asked, runner.program, ts, seconds, runner.stages)
  if first:
    rundir.finish(workdir, result)
    logging.info('accuracy %.4f. Written: %s', result['record']['accuracy'], workdir)
  beat.at(ts.count, 'done')
  return exits.DONE


def measure(
  asked: Asked, program: loop.Program, ts: jsp.TrainState, seconds, stages=()
) -> dict[str, Any]:
  """Packs the weights and returns what `result.json` holds.

  Args:
    asked: what was asked.
    program: what ran last.
    ts: the trained state.
    seconds: of training, None where the run was resumed.
    stages: the changes of the transform on the way.
  """
  digest = jsp.digest(tuple(ts[:3]))
  params, state = _local((ts.params, ts.state))
  packed = program.transform.pack(params, state)
  task = program.task
  figures = {name: float(value) for name, value in task.evaluate(packed).items()}
  flops = jsp.flops(task.apply, packed, task.inputs)
  examples = len(jax.tree.leaves(task.inputs)[0])
  # The transform that was asked for, whatever it has become.
  spelled = stages[0]['asked'] if stages else jsp.spell(program.transform)
  reasons = {'latency_ratio': 'Runs of a sweep share their machine; the benchmarks measure time.'}
  if seconds is None:
    reasons['train_seconds'] = 'The run was resumed; ledger.jsonl has the times.'
  record = reports.Record(
    model=f'{asked.experiment} {_SIZE.value}'.strip(),
    label=_TRANSFORM.value,
    transform=spelled,
    baseline=spelled == 'identity()',
    seed=asked.config.seed,
    accuracy=figures['accuracy'],
    size_bytes=int(jsp.nbytes(packed)),
    flops_ideal=flops.ideal / examples,
    flops_executed=flops.executed / examples,
    sparsity=float(jsp.sparsity(state)) if jsp.masks(state) else None,
    train_seconds=seconds,
    details={'about': task.about, **{k: v for k, v in figures.items() if k != 'accuracy'}},
    reasons=reasons,
  )
  return {
    'status': 'finished',
    'record': json.loads(reports.to_json(record)),
    'figures': {name: value if np.isfinite(value) else None for name, value in figures.items()},
    'steps': ts.count,
    'digest': digest,
    'facts': dict(task.facts),
    'stages': list(stages),
  }


def _local(tree):
  """The whole tree on this process's first device, as evaluation wants it."""
  if jax.process_count() > 1:
    # A leaf at a time: gathers side by side take each other's messages on CPUs (see loop.py).
    tree = jax.tree.map(_gathered, tree)
  elif jax.device_count() > 1:
    tree = jax.device_get(tree)
  else:
    return tree
  return jax.tree.map(jnp.asarray, tree)


def _gathered(leaf):
  return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _metrics(workdir, after, first):
  if not first:
    return metrics.NoMetrics()
  return metrics.Metrics(workdir, after=after, tensorboard=_TENSORBOARD.value)


@contextlib.contextmanager
def _progress(asked, steps, first):
  """A bar on a terminal; elsewhere the loop's own lines."""
  if not (first and sys.stdout.isatty()):
    yield _ignore
    return
  with reports.show_progress(asked.experiment, 1) as progress:
    yield progress.start(_TRANSFORM.value, steps)


def _failed(workdir, first, code, reason, step=None) -> int:
  if first:
    rundir.fail(workdir, code, str(reason), step)
  logging.error('%s', reason)
  return code


def _is_ours(record) -> bool:
  return record.levelno > logging.converter.STANDARD_INFO or '/launch/' in record.pathname


def _ignore(*_, **__):
  pass


if __name__ == '__main__':
  app.run(main, flags_parser=functools.partial(programs.parse, _COMMAND))
