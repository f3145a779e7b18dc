"""Checkpoints of several processes: other meshes and counts, and a host that cannot write."""

import pytest

from tests.launch import processes
from tests.training import store_worker


def _run(scenario, directory, logs, **how):
  """The facts that each process said."""
  started = store_worker.start(scenario, directory, logs, **how)
  with processes.ended(*started):
    for one in started:
      assert one.code() == 0, one.text
    return [store_worker.said(one) for one in started]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run saved by 2 processes x 4 devices, and its digest."""
  path = tmp_path_factory.mktemp('saved')
  first, second = _run('save', path / 'run', path, count=2, devices=4)
  assert first == second
  assert first[0]['steps'] == [1, 2]
  return path / 'run', first[0]['digest']


@pytest.mark.parametrize('count, devices', [(1, 8), (4, 2)])
def test_restores_on_another_mesh_and_process_count(saved, tmp_path, count, devices):
  directory, digest = saved
  expected = {'step': 2, 'digest': digest, 'skipped': [], 'placed': True}
  found = _run('restore', directory, tmp_path, count=count, devices=devices)
  assert found == [[expected]] * count


def test_a_damaged_step_is_set_aside_by_all_processes(tmp_path):
  _run('save', tmp_path / 'run', tmp_path, count=1, devices=8)
  victim = max((tmp_path / 'run' / '2').rglob('*'), key=lambda p: p.is_file() and p.stat().st_size)
  data = bytearray(victim.read_bytes())
  data[len(data) // 2] ^= 1
  victim.write_bytes(data)
  first, second = _run('restore', tmp_path / 'run', tmp_path, count=2, devices=4)
  assert first == second
  assert first[0]['step'] == 1
  assert [step for step, _ in first[0]['skipped']] == [2]
  assert victim.name in first[0]['skipped'][0][1]
  assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == ['1', '2.damaged']


# Late is a race: on a loaded machine the write may be done before the limit is there.
@pytest.mark.parametrize('late', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_host_that_cannot_write_is_named_by_all(tmp_path, late):
  facts = _run('full', tmp_path / 'run', tmp_path, count=2, devices=4, late=late)
  for failed, then in facts:
    assert 'Step 2 was not saved: host 1: ' in failed['failure']
    assert '[Errno 27] File too large: ' in failed['failure']
    # Orbax alone: both processes time out, after ten minutes, without the cause.
    assert failed['seconds'] < 10
    assert failed['steps'] == [1]
    assert then == {'steps': [1, 3], 'names': ['1', '3']}


def test_hosts_that_do_not_agree_save_nothing(tmp_path):
  facts = _run('unequal', tmp_path / 'run', tmp_path, count=2)
  assert [one['steps'] for (one,) in facts] == [[], []]
  assert all('other values' in one['failure'] for (one,) in facts)
