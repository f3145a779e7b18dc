"""The training loop of a run: steps, logs, checkpoints, and what to do when something goes wrong.

Everything a step depends on is in the checkpoint: latents, masks and scales, moments, the count,
the key, and how far the data is ahead of the count. A step's batch and key are functions of its
position, so a resumed run repeats the interrupted one to the bit.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

import jaxsparse as jsp
from launch.runs import stages

# How many steps the host may run ahead of the devices: enough to hide its own work, few enough that
# batches do not pile up and that a lost peer is noticed.
_AHEAD = 2
_SECONDS_BETWEEN_LINES = 10.0


class Settings(NamedTuple):
  """How a run behaves, apart from what it computes.

  Attributes:
    checkpoint_every: steps between checkpoints; the last step is always saved.
    log_every: steps between lines of metrics.
    on_nan: `'stop'` or `'rollback'`: what a loss that is not finite, or above `max_loss`, leads to.
    max_loss: a loss above it counts as diverged.
    rollbacks: how many in a row are tried before stopping.
    save_failures: how many checkpoints in a row may fail before stopping.
  """

  checkpoint_every: int = 100
  log_every: int = 10
  on_nan: str = 'stop'
  max_loss: float = float('inf')
  rollbacks: int = 3
  save_failures: int = 3


class Diverged(Exception):
  """The loss or a weight of a step is not finite, or the loss is above the limit."""

  def __init__(self, step: int, what: str):
    super().__init__(f'Step {step}: {what}.')
    self.step = step


class Preempted(Exception):
  """SIGTERM arrived; the step is saved."""

  def __init__(self, step: int):
    super().__init__(f'Preempted; saved at step {step}.')
    self.step = step


class Mismatch(Exception):
  """The checkpoints are those of another recipe or tree; the message lists what differs."""


class Program(NamedTuple):
  """A task under a transform on a mesh, ready to run.

  Attributes:
    task: the experiment's `Task`.
    transform: a `jsp.Transform`.
    mesh: axes `data` and `model`.
    places: `TrainState` of shardings.
    step: `(train state, batch, key data, position) -> (train state, loss, metrics)`.
    create: `() -> TrainState`, fresh.
    like: abstract `TrainState`.
    axes: roles of the weights' axes, by name.
  """

  task: Any
  transform: jsp.Transform
  mesh: jax.sharding.Mesh
  places: jsp.TrainState
  step: Callable
  create: Callable[[], jsp.TrainState]
  like: jsp.TrainState
  axes: Any


def make_mesh(sizes: dict[str, int]) -> jax.sharding.Mesh:
  """Returns the mesh of all devices.

  Args:
    sizes: by axis; -1 stands for all devices.

  Raises:
    ValueError: the product of the sizes is not the number of devices.
  """
  count = jax.device_count()
  shape = tuple(count if size == -1 else size for size in sizes.values())
  if int(np.prod(shape)) != count:
    asked = ','.join(f'{axis}:{size}' for axis, size in zip(sizes, shape))
    raise ValueError(f'--mesh={asked} needs {int(np.prod(shape))} devices, there are {count}.')
  auto = (jax.sharding.AxisType.Auto,) * len(shape)
  return jax.make_mesh(shape, tuple(sizes), axis_types=auto)


def program(
  task: Any,
  transform: jsp.Transform,
  mesh: jax.sharding.Mesh,
  *,
  pace: dict[str, Any] | None = None,
  **extra,
) -> Program:
  """Lays a task out on a mesh; allocates and compiles nothing yet.

  Args:
    task: the experiment's `Task`.
    transform: of its weights.
    mesh: axes `data` and `model`.
    pace: arguments of `jsp.warm_again`, of a stage that begins in the middle of a run; None for
      a run's first stage.
    **extra: what `transform.init` needs besides, as `evidence.gathered` returns.

  Raises:
    ValueError: from the transform (nothing matches, a pattern does not divide), or from the specs.
  """
  if pace is not None:
    task = task._replace(tx=jsp.warm_again(task.tx, **pace))
  weights = jax.eval_shape(task.init)
  axes = jsp.axes_of(task.apply, weights, task.inputs)
  specs = jax.tree.map(lambda _: PartitionSpec(), weights)
  if task.specs is not None and mesh.size > 1:
    specs = task.specs(weights)
  places = jsp.train_shardings(transform, task.tx, weights, specs, mesh, axes=axes, **extra)

  def loss_fn(params, batch, key, position):
    return task.loss(params, batch, jax.random.fold_in(jax.random.wrap_key_data(key), position))

  create = lambda: jsp.TrainState.create(
    transform, task.tx, task.init, shardings=places, axes=axes, **extra
  )
  abstract = jax.eval_shape(lambda: create()[:3])
  placed = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places[:3]
  )
  factored = transform.spec.restructures  # what it makes of weights may be multiplied as stored
  step = jsp.train_step(
    jsp.dispatch(loss_fn) if factored else loss_fn,
    task.tx,
    transform,
    has_aux=True,
    dense=not factored,
    shardings=places,
  )
  return Program(task, transform, mesh, places, step, create, jsp.TrainState(*placed, 0), axes)


class Loop:
  """Runs a program from its newest intact checkpoint to its end.

  Args:
    program: what to run.
    seed: of the keys.
    store: `jsp.CheckpointStore` of the run.
    open_metrics: `after -> Metrics`, writing from the step after it.
    settings: how to behave.
    watch: `.reached(step)`, whether all processes were asked to stop.
    pulse: `.at(step, phase)`, told where the loop is.
    event: `(name, **facts)`, for the ledger.
    advance: told the number of finished steps.
  """

  def __init__(self, program, *, seed, store, open_metrics, settings, watch, pulse, event, advance):
    self._asked = self._program = program
    self._store, self._settings = store, settings
    self._open_metrics, self._watch, self._pulse = open_metrics, watch, pulse
    self._event, self._advance = event, advance
    self._key = np.asarray(jax.random.key_data(jax.random.key(seed)))
    # Gloo, the collectives of CPUs, matches messages by their order alone: two programs in flight
    # side by side (a step and a refresh, a fingerprint) hang, or take each other's messages.
    self._lockstep = jax.process_count() > 1 and jax.default_backend() == 'cpu'
    self._metrics = None
    self._writing = None
    self._failures = self._rollbacks = 0
    self._why = None  # the last save failed
    self._spoken = 0.0
    self._stages, self._notes = [], None  # changes so far, and what the transform wants to know
    self._course = None

  @property
  def program(self) -> Program:
    """The program of the stage that the run is at."""
    return self._program

  @property
  def stages(self) -> list[dict[str, Any]]:
    """The changes of the transform so far, as JSON has them."""
    return [stage._asdict() for stage in self._stages]

  def run(self) -> jsp.TrainState:
    """Trains to the last step and returns the state, saved.

    Raises:
      Diverged: by policy; the step is named and nothing of it is saved.
      Preempted: after SIGTERM; the step is saved.
      jsp.SaveError: checkpoints keep failing.
      Mismatch: the checkpoints are those of another recipe or tree.
    """
    mesh = self._program.mesh
    with jax.set_mesh(mesh) if mesh.size > 1 else contextlib.nullcontext():
      ts, ahead = self._restore()
      while True:
        try:
          with contextlib.closing(self._open_metrics(ts.count)) as self._metrics:
            return self._train(ts, ahead)
        except Diverged as error:
          ts = None  # frees the devices before the older state comes back
          ts, ahead = self._roll_back(error, ahead)

  def _train(self, ts, ahead):
    task, settings = self._program.task, self._settings
    pending, compiled = [], set()  # which of the step's two programs have run, so are compiled
    saved = self._store.steps()[-1:] == [ts.count]
    while ts.count < task.steps:
      position = ts.count + ahead
      self._pulse.at(ts.count, 'data')
      batch = self._place(task.batch(position))
      ts, changed = self._turn(ts, pending)
      if changed:
        compiled.clear()
      refresh = bool(self._program.transform.spec.due(ts.count))
      self._pulse.at(ts.count, 'step' if refresh in compiled else 'compile')
      compiled.add(refresh)
      ts, loss, metrics = self._program.step(ts, batch, self._key, np.int32(position))
      done, saved = ts.count, False
      if self._lockstep:
        self._pulse.at(done, 'wait')
        jax.block_until_ready((ts[:3], loss, metrics))
      pending.append((done, loss, metrics))
      if len(pending) > _AHEAD:
        self._pulse.at(done, 'wait')
        pending[-1 - _AHEAD][1].block_until_ready()
      last = done == task.steps
      due = last or done % settings.checkpoint_every == 0
      stop = self._watch.reached(done)
      if due or stop or done % settings.log_every == 0:
        self._pulse.at(done, 'wait')
        self._log(pending)
        pending = []
      self._report(self._store.failure())
      if (due or stop) and self._save(ts, ahead, must=last or stop):
        saved = True
      if stop and not last:
        raise Preempted(done)
      self._advance(done)
    if not saved:
      self._save(ts, ahead, must=True)
    return ts

  def _turn(self, ts, pending):
    """Asks the transform whether it goes on to another; the state it goes on with, and whether."""
    transform, task = self._program.transform, self._program.task
    if transform.spec.next_stage is None:
      return ts, False
    self._pulse.at(ts.count, 'compile')
    if self._course is None:
      weights = jax.eval_shape(task.init)
      told = stages.order(task, weights), stages.speedups(task, weights)
      self._course = jsp.Course(0, task.steps, stages.epoch(task), None, *told)
    course = self._course._replace(count=ts.count, notes=self._notes)
    try:
      turn = transform.spec.next_stage(ts.params, ts.state, course)
    except ValueError:
      self._log(pending)  # a loss that is not finite says it better
      raise
    if turn is None:
      return ts, False
    self._notes = turn.notes
    recipe = None if turn.transform is None else jsp.spell(turn.transform)
    if turn.report is not None:
      self._event('stage', step=ts.count, recipe=recipe, **turn.report)
      logging.info('step %d: %s', ts.count, recipe or f'nothing changes: {dict(turn.report)}')
    if recipe is None:
      return ts, False
    return self._restage(ts, turn, recipe), True

  def _restage(self, ts, turn, recipe):
    asked, old = self._asked, self._program
    inner = ts.opt_state.inner if self._stages else ts.opt_state
    stage = stages.Stage(recipe, jsp.spell(asked.transform), ts.count, turn.warmup, turn.rate)
    new = program(asked.task, turn.transform, asked.mesh, pace=stage.pace)

    def build(params, state, opt_state):
      *kept, opt_state = jsp.restage(
        old.transform, turn.transform, params, state, opt_state, asked.task.tx, axes=asked.axes
      )
      return *kept, jsp.WarmState(opt_state, jnp.zeros([], jnp.int32))

    placed = jax.jit(build, out_shardings=new.places[:3])(ts.params, ts.state, inner)
    self._program = new
    self._stages.append(stage)
    return jsp.TrainState(*placed, ts.count)

  def _log(self, pending):
    """Looks at every loss since the last look; writes those that are to be logged."""
    last = self._program.task.steps
    for step, loss, metrics in jax.device_get(pending):
      if not np.isfinite(loss) or loss > self._settings.max_loss:
        raise Diverged(step, f'the loss is {float(loss)}')
      if step % self._settings.log_every == 0 or step == last:
        values = {'loss': float(loss), **{k: float(v) for k, v in metrics.items()}}
        self._metrics.write(step, values)
        now = time.monotonic()
        if now - self._spoken > _SECONDS_BETWEEN_LINES:
          self._spoken = now
          logging.info('step %d of %d: loss %.4f', step, last, loss)

  def _save(self, ts, ahead, *, must) -> bool:
    """Begins to save a step; `must` waits until it is on disk, and is not refused quietly."""
    self._pulse.at(ts.count, 'save')
    self._settle()  # the one before was done long ago, almost always
    if self._failures >= self._settings.save_failures:
      raise jsp.SaveError(
        f'Step {ts.count}: {self._failures} checkpoints in a row were not saved: {self._why}'
      )
    try:
      # First: a checkpoint whose metrics are lost could not be resumed to the same file.
      self._metrics.flush()
    except OSError as error:
      failed = jsp.SaveError(f'Step {ts.count} was not saved: its metrics cannot be: {error}')
      self._report(failed)
      if must:
        raise failed from error
      return False
    try:
      extra = {'position': ts.count + ahead}
      if self._asked.transform.spec.next_stage is not None:
        extra |= {'stages': self.stages, 'notes': self._notes}
      self._store.save(
        ts.count, self._tree(ts, ahead), extra=extra, transform=self._program.transform
      )
      self._writing = ts.count
    except jsp.NonFiniteError as error:
      raise Diverged(ts.count, f'the state is not finite: {error}') from error
    except jsp.SaveError as error:
      self._report(error)
      if must:
        raise
      return False
    if must:
      self._settle(must=True)
    return True

  def _settle(self, *, must=False):
    """Waits for the checkpoint under way and writes down how it ended."""
    try:
      self._store.wait()
    except jsp.SaveError as error:
      self._report(error)
      if must:
        raise
    if self._writing is not None:
      self._event('save', step=self._writing)
      self._failures = self._rollbacks = 0
    self._writing = None

  def _report(self, error):
    """Says at once that a checkpoint is not there; the next one is tried as scheduled."""
    if error is None:
      return
    self._writing, self._why = None, error
    self._failures += 1
    logging.error('Checkpoint not saved: %s', error)
    self._event('save_failed', reason=str(error), in_a_row=self._failures)

  def _restore(self):
    """The newest intact state, or a fresh one."""
    there = self._store.steps()
    self._program, self._stages, self._notes = self._asked, [], None
    try:
      found = self._store.restore(like_of=self._like)
    except jsp.NoCheckpoint as error:
      if there:
        logging.error('No intact checkpoint is left, so the run begins again: %s', error)
        self._event('damaged', step=there, reason=str(error))
      self._program, self._stages = self._asked, []
      return self._program.create(), 0
    except ValueError as error:
      raise Mismatch(str(error)) from error
    for step, reason in found.skipped:
      logging.error('Checkpoint of step %d is damaged and set aside: %s', step, reason)
      self._event('damaged', step=step, reason=reason)
    self._notes = found.extra.get('notes')
    self._event('restore', step=found.step)
    logging.info('Resumed at step %d.', found.step)
    tree = found.tree
    return jsp.TrainState(*tree['train'], int(tree['count'])), int(tree['ahead'])

  def _like(self, recipe, extra):
    """The tree of a checkpoint, by the stage that it was saved at."""
    asked = self._asked
    self._stages = stages.of_checkpoint(asked.transform, recipe, extra)
    self._program = asked
    if self._stages:
      last = self._stages[-1]
      transform = stages.transform_of(last)
      self._program = program(asked.task, transform, asked.mesh, pace=last.pace)
    return self._tree(self._program.like, 0)

  def _roll_back(self, error, ahead):
    """Goes back to the newest checkpoint and on with the data after what led to the fault.

    The batches between are skipped, as in Chowdhery et al., "PaLM" (arXiv:2204.02311), section 5.1:
    with the same batches the same would happen again.
    """
    self._event('nan', step=error.step, reason=str(error))
    if self._settings.on_nan != 'rollback' or self._rollbacks >= self._settings.rollbacks:
      raise error
    self._rollbacks += 1
    bad = error.step + ahead
    ts, ahead = self._restore()
    ahead = bad - ts.count
    logging.warning('%s Rolled back to step %d, data from position %d.', error, ts.count, bad)
    self._event('rollback', step=ts.count, position=bad)
    return ts, ahead

  def _tree(self, ts, ahead):
    return {'train': tuple(ts[:3]), 'count': ts.count, 'ahead': ahead, 'key': self._key}

  def _place(self, batch):
    """The batch on the mesh, its leading axis over `data`."""
    mesh = self._program.mesh
    place = NamedSharding(mesh, PartitionSpec('data'))
    if jax.process_count() == 1:
      return jax.device_put(batch, place)
    return jax.tree.map(
      lambda x: jax.make_array_from_callback(x.shape, place, lambda index: x[index]), batch
    )
