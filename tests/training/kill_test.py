"""kill -9 while saving back to back: what is committed is whole, and nothing committed is lost."""

import random
import time

import jax
import numpy as np
import pytest

import jaxsparse as jsp
from tests.launch import processes
from tests.training import store_worker


def _kill_once(directory, logs, chance, count):
  """Lets the writers come some steps further, kills them, and checks what they left."""
  writers = store_worker.start('save_for_ever', directory, logs, count=count)
  writer, target = writers[0], chance.randint(2, 6)
  with processes.ended(*writers):
    processes.until(lambda: len(store_worker.said(writer)) >= target, of=writer)
    # By an observed step, so that it hits a save and not the start; then anywhere in its course.
    time.sleep(chance.uniform(0, 0.15))
  facts = store_worker.said(writer)
  for one in writers:
    one.log.unlink()
  assert {f['failure'] for f in facts} == {'None'}
  left = [p.name for p in directory.iterdir() if not p.name.isdigit()]
  with jsp.CheckpointStore(directory) as store:
    steps = store.steps()
    # When `save(n)` has returned, n - 1 is committed.
    assert steps[-1] >= facts[-1]['step'] - 1
    for step in steps[::-1]:
      found = store.restore(store_worker.state(0), step=step)
      assert (found.step, found.skipped) == (step, [])
      jax.tree.map(np.testing.assert_array_equal, found.tree, store_worker.state(step))
  return left


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  'kills, count', [(4, 1), pytest.param(20, 1, marks=_SLOW), pytest.param(5, 2, marks=_SLOW)]
)
def test_no_step_is_torn_or_lost_and_leftovers_go(tmp_path, kills, count):
  directory, chance = tmp_path / 'run', random.Random(kills)
  left = [_kill_once(directory, tmp_path, chance, count) for _ in range(kills)]
  assert any(left), 'no kill met a write'
  with jsp.CheckpointStore(directory) as store:
    newest = store.steps()[-1]
    store.save(newest + 1, store_worker.state(newest + 1))
    store.wait()
  assert all(p.name.isdigit() for p in directory.iterdir())
