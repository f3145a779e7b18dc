"""One run over the tasks of a real Slurm step: who is who comes from srun."""

import json
import os
import subprocess

import pytest

from launch import exits
from launch.hosts import pulse
from tests.launch import processes
from tests.launch import slurm_test

pytestmark = pytest.mark.slow

cluster = slurm_test.cluster


def _srun(tmp_path, *words):
  """srun of two tasks on two nodes; their names do not resolve here, so the address is given."""
  return processes.Started(
    *words,
    log=tmp_path / 'log',
    before=('srun', '--ntasks=2', '--nodes=2', '--kill-on-bad-exit=0'),
    **{name: value for name, value in os.environ.items() if name == 'SLURM_CONF'},
    JAX_COORDINATOR_ADDRESS=f'127.0.0.1:{processes.free_port()}',
    XLA_FLAGS='--xla_force_host_platform_device_count=1',
  )


@pytest.mark.usefixtures('cluster')
def test_the_tasks_of_a_step_are_one_run_and_stop_at_one_step(tmp_path):
  step = _srun(tmp_path, 'tests.launch.joins', '--mode=auto')
  with processes.ended(step):
    processes.until(lambda: step.text.count('step 5\n') == 2, of=step)
    (job,) = subprocess.check_output(['squeue', '--noheader', '--format=%A'], text=True).split()
    subprocess.run(['scancel', '--signal=TERM', job], check=True)
    assert step.code() == exits.PREEMPTED, step.text
  assert len({line for line in step.text.splitlines() if 'stopped' in line}) == 1


@pytest.mark.usefixtures('cluster')
def test_a_supervisor_a_task_resumes_a_stuck_run(tmp_path):
  workdir = tmp_path / 'run'
  flags = (f'--workdir={workdir}', '--limit=3', '--module=tests.launch.toy')
  step = _srun(tmp_path, 'launch.supervise', *flags, '--', '--fault=sleep:1:7')
  with processes.ended(step):
    assert step.code() == exits.DONE, step.text
  (event,) = [json.loads(line) for line in (workdir / 'ledger.jsonl').read_text().splitlines()]
  assert (event['code'], event['lost_rank']) == (exits.STUCK, 1)
  beats = [pulse.read(p) for p in sorted((workdir / 'hosts' / 'attempt-2').glob('rank-*.json'))]
  assert [(b.rank, b.count) for b in beats] == [(0, 2), (1, 2)]
