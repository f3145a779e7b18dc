"""The Slurm engine on a real munged, slurmctld and two slurmd, started in a temporary folder."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

import pytest

from launch import documents
from launch.sweeps import conductor
from launch.sweeps import keeper
from launch.sweeps.engines import slurm

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_DAEMONS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'squeue', 'scontrol')
_CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdSpoolDir={folder}/spool.%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MinJobAge=86400
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=2000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=2000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _ports(count):
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope='module')
def cluster():
  """Two nodes of two cores; SLURM_CONF points at them while the module's tests run."""
  missing = [name for name in _DAEMONS if shutil.which(name) is None]
  if missing:
    pytest.skip(f'Slurm and munge are not installed: no {", ".join(missing)} on PATH')
  if os.getuid() != 0:
    pytest.skip('a private Slurm is started as root only')
  before = os.environ.get('SLURM_CONF')
  # A socket's path is short by law, pytest's folders are not.
  folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm-'))
  try:
    _start(folder)
    yield folder
  finally:
    _stop(folder)
    if before is None:
      os.environ.pop('SLURM_CONF', None)
    else:
      os.environ['SLURM_CONF'] = before
    shutil.rmtree(folder, ignore_errors=True)


def _start(folder):
  for name in ('state', 'log', 'munge', 'spool.n1', 'spool.n2'):
    (folder / name).mkdir(mode=0o755)
  folder.chmod(0o755)
  key = folder / 'munge' / 'key'
  key.write_bytes(os.urandom(1024))
  key.chmod(0o400)
  munge = folder / 'munge'
  words = [f'--{n}={munge}/{f}' for n, f in (('key-file', 'key'), ('socket', 'sock'))]
  words += [f'--{n}-file={munge}/{n}' for n in ('pid', 'log', 'seed')]
  subprocess.run(['munged', '--force', *words], check=True, capture_output=True, timeout=30)
  conf = folder / 'slurm.conf'
  host = socket.gethostname().partition('.')[0]
  conf.write_text(_CONF.format(folder=folder, host=host, ports=_ports(3)))
  os.environ['SLURM_CONF'] = str(conf)
  quiet = {'check': True, 'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL, 'timeout': 60}
  subprocess.run(['slurmctld', '-c', '-f', conf], **quiet)
  for node in ('n1', 'n2'):
    subprocess.run(['slurmd', '-c', '-f', conf, '-N', node], **quiet)
  deadline = time.monotonic() + 90
  while 'idle' not in _said('sinfo', '--noheader', '--format=%T').split() != ['idle']:
    assert time.monotonic() < deadline, (folder / 'log' / 'slurmctld.log').read_text()[-2000:]
    time.sleep(0.2)


def _said(*words):
  return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False).stdout


def _stop(folder):
  if (folder / 'slurm.conf').exists():
    _said('scancel', '--user=root')
    for _ in range(50):  # a step's own daemon would outlive the others
      if not _said('squeue', '--noheader', '--states=running,completing').strip():
        break
      time.sleep(0.2)
    _said('scontrol', 'shutdown')
  for path in [*folder.glob('*.pid'), folder / 'munge' / 'pid']:
    with contextlib.suppress(OSError, ValueError):
      pid = int(path.read_text())
      os.kill(pid, 15)
      for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(_ROOT)


def _settings(workdir, grid, **more):
  return conductor.Settings(
    **{
      'experiment': 'vision',
      'size': 'smoke',
      'grid': grid,
      'workdir': str(workdir),
      'engine': 'slurm',
      'workers': 4,
      'point_minutes': 0.05,
      'program': 'tests.launch.small_run',
      'grace_seconds': 0.5,
      **more,
    }
  )


def _starts(workdir):
  return {path.parent.name: len(path.read_text()) for path in workdir.glob('runs/*/starts')}


def _until(condition, seconds=90):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline, f'waited in vain; {_said("scontrol", "show", "job")}'
    time.sleep(0.1)


@pytest.mark.slow  # a minute; sweep_test runs the same twelve here, and the tests below real jobs
def test_twelve_points_of_which_three_fail(cluster, tmp_path, monkeypatch):
  monkeypatch.setattr(slurm, '_POLL_SECONDS', 1.0)
  grid = "transform=['identity()', 'nm(2, 4)', 'rigl(0.9)'] * seed=[0, 1, 2]"
  grid += " + transform=['nm(2, 4)'] * seed=[100, 101, 102]"
  assert conductor.conduct(_settings(tmp_path, grid)) == 1
  text = (tmp_path / 'results.csv').read_text()
  assert text.count(',finished,') == 9 and text.count(',failed,') == 3
  for reason in ('the crash of this test', 'took longer than 3 s', 'Step 3: loss is nan.'):
    assert reason in text
  assert (tmp_path / 'engine').stat().st_mode & 0o777 == 0o700
  before = _starts(tmp_path)
  assert conductor.conduct(_settings(tmp_path, grid, retries=0)) == 1
  assert sum(_starts(tmp_path).values()) == sum(before.values()) + 3


def test_a_killed_sweep_finds_its_jobs_again(cluster, tmp_path, monkeypatch):
  monkeypatch.setattr(slurm, '_POLL_SECONDS', 1.0)
  script = (
    'import sys; from launch.sweeps import conductor; '
    f'from tests.launch import slurm_test; slurm_test.conduct_long({str(tmp_path)!r})'
  )
  sweep = subprocess.Popen([sys.executable, '-c', script], cwd=_ROOT)
  try:
    _until(lambda: len(_starts(tmp_path)) == 2 and (tmp_path / 'engine' / 'jobs.json').exists())
  finally:
    sweep.kill()
    sweep.wait()
  assert conductor.conduct(_long(tmp_path)) == 0
  assert set(_starts(tmp_path).values()) == {1}


def _long(workdir):
  return _settings(workdir, 'seed=[0, 1]', fields='steps=150', point_minutes=1.0)


def conduct_long(workdir):
  """What the killed process runs."""
  conductor.conduct(_long(workdir))


# What an administrator does, and what Slurm itself does some time before a job's limit.
@pytest.mark.parametrize('told', [('scontrol', 'requeue'), ('scancel', '--signal=USR2')], ids=str)
def test_a_requeued_and_a_cancelled_job(cluster, tmp_path, monkeypatch, told):
  monkeypatch.setattr(slurm, '_POLL_SECONDS', 1.0)
  paths = {n: str(tmp_path / n) for n in ('run', 'log', 'state', 'lock', 'stop')}
  (tmp_path / 'run').mkdir()
  # The first try waits to be told to stop; the second finishes.
  script = (
    'import json, pathlib, signal, sys, time; run = pathlib.Path(sys.argv[1]);'
    'signal.signal(signal.SIGTERM, lambda *_: ((run / "saved").touch(), sys.exit(42)));'
    '(run / "began").touch();'
    'time.sleep(0 if (run / "saved").exists() else 300);'
    '(run / "result.json").write_text(json.dumps({"status": "finished", "record": {}}))'
  )
  job = keeper.Job(
    name='a',
    command=(sys.executable, '-c', script, paths['run']),
    seconds=600,
    grace=10,
    retries=0,
    environment={},
    **paths,
  )
  places = {'workers': 1, 'folder': tmp_path / 'engine', 'cluster': slurm.Cluster()}
  with slurm.start([job], **places) as queue:
    _until((tmp_path / 'run' / 'began').exists)
    _said(*told, queue.ids['a'])
    _until((tmp_path / 'run' / 'saved').exists)
    _until(lambda: 'PENDING' in (slurm.queue_states(queue.ids.values()) or {}).values())
    # A node refuses a job that starts in the second in which it was taken away.
    time.sleep(2)
    _said('scontrol', 'update', f'jobid={queue.ids["a"]}', 'starttime=now')
    _until(lambda: (documents.read(job.state) or {}).get('status') == 'finished')
    assert queue.lost() == {}

  (tmp_path / 'run' / 'result.json').unlink()
  (tmp_path / 'run' / 'saved').unlink()
  (tmp_path / 'run' / 'began').unlink()
  with slurm.start([job], **places) as queue:
    _until((tmp_path / 'run' / 'began').exists)
    _said('scancel', '--signal=KILL', '--full', queue.ids['a'])
    lost = {}
    _until(lambda: lost.update(queue.lost()) or lost)
    assert 'ended without a word' in lost['a']


def test_what_means_something_to_a_batch_script_is_refused():
  for name in ('partition', 'account', 'gres', 'constraint'):
    for value in ('a b', 'a\ntouch x', '$(touch x)', '`x`', '--wrap=x', 'a;b', "a'b", '\0'):
      with pytest.raises(ValueError, match=f'--slurm_{name}'):
        slurm.check(slurm.Cluster(**{name: value}), '/w')
  slurm.check(slurm.Cluster(gres='gpu:a100:1', partition='day-long'), '/w')
  with pytest.raises(ValueError, match='replaces %'):
    slurm.check(slurm.Cluster(), '/w/%j')
