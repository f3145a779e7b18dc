"""The loop on a toy task: what it logs, saves, restores, and does about a loss that diverges."""

import errno
import json
import os
import pathlib
import resource
import tempfile
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from experiments import task as tasks
from launch.runs import loop
from launch.runs import metrics

NOISE = 0.01


def toy(steps=12, poison=(), infinite_weights_after=None):
  """A linear model whose batches at the positions of `poison` are full of NaN."""

  def batch(position):
    rng = np.random.default_rng([7, position])
    x = rng.normal(size=(8, 16)).astype('f')
    return x * (np.nan if position in poison else 1), x.sum(1, keepdims=True).astype('f')

  def loss(params, batch, key):
    x, y = batch
    error = x @ params['kernel'] - y + NOISE * jax.random.normal(key, y.shape)
    return (error**2).mean(), {'largest': jnp.abs(params['kernel']).max()}

  tx = optax.adam(0.05)
  if infinite_weights_after is not None:
    scale = lambda count: jnp.where(count == infinite_weights_after, jnp.inf, 1.0)
    tx = optax.chain(tx, optax.scale_by_schedule(scale))
  return tasks.Task(
    init=lambda: {'kernel': jax.random.normal(jax.random.key(0), (16, 8))[:, :8] * 0.1},
    loss=loss,
    batch=batch,
    tx=tx,
    steps=steps,
    evaluate=lambda params: {'accuracy': 1.0},
    apply=lambda params, x: x @ params['kernel'],
    inputs=np.zeros((1, 16), 'f'),
    weights='kernel',
  )


def limit_file_size(small):
  """Forbids this process files above two kilobytes, which is what a full disk looks like."""
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2048 if small else hard, hard))


def full_disk(task, changes):
  """The task, with the disk full or free again from the given positions on."""

  def batch(position):
    if position in changes:
      _await_saves()  # they end under the limit they began with
      limit_file_size(changes[position])
    return task.batch(position)

  return task._replace(batch=batch)


def _await_saves():
  deadline = time.monotonic() + 60
  while any(t.name.startswith('commit-') for t in threading.enumerate()):
    assert time.monotonic() < deadline
    time.sleep(0.01)


class Quiet:
  """Stands for a watch that is asked at step `stop` to stop, and for a pulse."""

  def __init__(self, stop=None):
    self._stop = stop

  def reached(self, step):
    return step == self._stop

  def at(self, step, phase):
    pass


_RIGL = 'rigl(0.5, every=3, end=9)'


def train(folder, task, transform=_RIGL, stop=None, mesh=None, log=metrics.Metrics, **settings):
  """Runs the task in a folder; returns the final state and the ledger's events."""
  events = []
  program = loop.program(
    task, jsp.parse(transform), loop.make_mesh(mesh or {'data': -1, 'model': 1})
  )
  with jsp.CheckpointStore(folder / 'checkpoints', program.transform, keep=3) as store:
    ts = loop.Loop(
      program,
      seed=0,
      store=store,
      open_metrics=lambda after: log(folder, after=after, tensorboard=False),
      settings=loop.Settings(**{'checkpoint_every': 4, 'log_every': 2, **settings}),
      watch=Quiet(stop),
      pulse=Quiet(),
      event=lambda name, **facts: events.append({'event': name, **facts}),
      advance=lambda step: None,
    ).run()
  return ts, events


def logged(folder):
  return (folder / 'metrics.jsonl').read_text()


class LoopTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for name in 'ab':
      (self.folder / name).mkdir()

  @parameterized.parameters('rigl(0.5, every=3, end=9)', 'lsq(bits=4)')
  @pytest.mark.sampled(1)
  def test_a_preempted_run_goes_on_to_the_bit(self, transform):
    whole, _ = train(self.folder / 'a', toy(), transform)
    for stop in (3, 7):  # neither is a multiple of checkpoint_every or log_every
      with self.assertRaises(loop.Preempted):
        train(self.folder / 'b', toy(), transform, stop=stop)
    resumed, events = train(self.folder / 'b', toy(), transform)
    self.assertEqual(events[0], {'event': 'restore', 'step': 7})
    self.assertEqual(jsp.digest(tuple(whole[:3])), jsp.digest(tuple(resumed[:3])))
    self.assertEqual(logged(self.folder / 'a'), logged(self.folder / 'b'))
    self.assertEqual(resumed.count, 12)

  @pytest.mark.slow
  def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(self):
    whole, _ = train(self.folder / 'a', toy(steps=16))
    train(self.folder / 'b', toy())
    files = [f for f in (self.folder / 'b/checkpoints/12').rglob('*') if f.is_file()]
    data = max(files, key=lambda f: f.stat().st_size)
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    resumed, events = train(self.folder / 'b', toy(steps=16))
    self.assertEqual([e['event'] for e in events[:2]], ['damaged', 'restore'])
    self.assertEqual((events[0]['step'], events[1]['step']), (12, 8))
    self.assertEqual(jsp.digest(tuple(whole[:3])), jsp.digest(tuple(resumed[:3])))
    self.assertEqual(logged(self.folder / 'a'), logged(self.folder / 'b'))

  def test_checkpoints_of_another_recipe_are_refused(self):
    train(self.folder / 'a', toy())
    with self.assertRaisesRegex(loop.Mismatch, r'nm\(2, 4\)'):
      train(self.folder / 'a', toy(), 'nm(2, 4)')

  def test_logs_a_line_every_so_often_and_the_last(self):
    train(self.folder / 'a', toy(steps=5))
    lines = [json.loads(line) for line in logged(self.folder / 'a').splitlines()]
    self.assertEqual([line['step'] for line in lines], [2, 4, 5])
    self.assertEqual(set(lines[0]), {'step', 'loss', 'largest'})

  def test_no_steps_only_compress_and_save(self):
    ts, events = train(self.folder / 'a', toy(steps=0), 'nm(2, 4)')
    self.assertEqual(float(jsp.sparsity(ts.state)), 0.5)
    self.assertEqual([e['event'] for e in events], ['save'])

  @parameterized.parameters({'poison': {5}}, {'poison': {4, 5, 6}}, {'poison': {0}})
  @pytest.mark.sampled(1)
  def test_stops_at_the_step_that_diverged_and_saves_nothing_of_it(self, poison):
    with self.assertRaises(loop.Diverged) as caught:
      train(self.folder / 'a', toy(poison=poison))
    self.assertEqual(caught.exception.step, min(poison) + 1)
    with jsp.CheckpointStore(self.folder / 'a' / 'checkpoints') as store:
      self.assertEqual(store.steps(), [s for s in (4,) if s <= min(poison)])

  def test_rolls_back_and_skips_the_batches_that_led_there(self):
    ts, events = train(self.folder / 'a', toy(poison={5}), on_nan='rollback')
    self.assertEqual(ts.count, 12)
    rollback = next(e for e in events if e['event'] == 'rollback')
    self.assertEqual(rollback, {'event': 'rollback', 'step': 4, 'position': 6})
    self.assertTrue(np.isfinite(ts.params['kernel']).all())
    steps = [json.loads(line)['step'] for line in logged(self.folder / 'a').splitlines()]
    self.assertEqual(steps, [2, 4, 6, 8, 10, 12])

  @pytest.mark.slow
  def test_rolls_back_a_bounded_number_of_times(self):
    with self.assertRaises(loop.Diverged):
      train(self.folder / 'a', toy(poison=set(range(5, 99))), on_nan='rollback', rollbacks=2)

  def test_a_loss_above_the_limit_has_diverged(self):
    with self.assertRaisesRegex(loop.Diverged, 'Step 1: the loss is'):
      train(self.folder / 'a', toy(), max_loss=1e-6)

  def test_weights_that_are_not_finite_are_never_saved(self):
    with self.assertRaisesRegex(loop.Diverged, 'Step 4: the state is not finite: .*kernel'):
      train(self.folder / 'a', toy(infinite_weights_after=3), 'identity()')
    with jsp.CheckpointStore(self.folder / 'a' / 'checkpoints') as store:
      self.assertEqual(store.steps(), [])

  def test_a_save_that_fails_is_reported_and_the_next_one_is_tried(self):
    ts, events = train(self.folder / 'a', full_disk(toy(), {3: True, 6: False}))
    self.assertEqual(ts.count, 12)
    failed = [e for e in events if e['event'] == 'save_failed']
    self.assertLen(failed, 1)
    self.assertRegex(failed[0]['reason'], '(?i)file too large')
    with jsp.CheckpointStore(self.folder / 'a' / 'checkpoints') as store:
      self.assertEqual(store.steps(), [8, 12])

  @pytest.mark.slow
  def test_metrics_that_cannot_be_written_fail_the_save_and_come_with_the_next(self):
    train(self.folder / 'a', toy())
    flush, calls = metrics.Metrics.flush, []

    class Full(metrics.Metrics):
      def flush(self):
        calls.append(1)
        if len(calls) == 2:
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(self)

    _, events = train(self.folder / 'b', toy(), log=Full)
    (failed,) = [e for e in events if e['event'] == 'save_failed']
    self.assertIn('Step 8 was not saved', failed['reason'])
    self.assertIn('No space left on device', failed['reason'])
    self.assertEqual([e['step'] for e in events if e['event'] == 'save'], [4, 12])
    self.assertEqual(logged(self.folder / 'a'), logged(self.folder / 'b'))

  @pytest.mark.slow
  def test_saves_that_keep_failing_end_the_run(self):
    self.addCleanup(limit_file_size, False)
    with self.assertRaises(jsp.SaveError):
      train(self.folder / 'a', full_disk(toy(steps=40), {7: True}))
    limit_file_size(False)
    with jsp.CheckpointStore(self.folder / 'a' / 'checkpoints') as store:
      self.assertEqual(store.steps(), [4])

  @pytest.mark.slow
  def test_meshes_agree(self):
    ts, _ = train(self.folder / 'a', toy(), mesh={'data': 8, 'model': 1})
    other, _ = train(self.folder / 'b', toy(), mesh={'data': 4, 'model': 2})
    np.testing.assert_allclose(ts.params['kernel'], other.params['kernel'], atol=1e-5)

  def test_a_mesh_of_another_size_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'needs 6 devices, there are 8'):
      loop.make_mesh({'data': 3, 'model': 2})


if __name__ == '__main__':
  absltest.main()
