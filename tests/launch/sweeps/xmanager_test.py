"""The XManager engine: its dry run to the letter, and what it refuses; XManager is not needed."""

import pathlib
import shlex
import subprocess
import sys

import pytest

from launch.sweeps import conductor
from launch.sweeps.engines import xmanager

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_GRID = "transform=['nm(2, 4)', \"nm(2, 4) | fake_quantize('int8')\"] * seed=[0, 1]"
_CLOUD = """\
# XManager experiment 'jaxsparse-sweep': 4 jobs, at most 2 at a time
# executor: xm_local.Vertex(tpu_v3=8)
# container: FROM python:3.12-slim
#   WORKDIR /jaxsparse
#   COPY {root}/ /jaxsparse
#   RUN pip install --no-cache-dir '.[launch,models,tpu]'
python3 -m launch.run --experiment=vision --size=smoke '--transform=nm(2, 4)' --seed=0 \
--set=steps=5 --workdir=/gcs/bucket/sweep/runs/{names[0]}
python3 -m launch.run --experiment=vision --size=smoke '--transform=nm(2, 4)' --seed=1 \
--set=steps=5 --workdir=/gcs/bucket/sweep/runs/{names[1]}
python3 -m launch.run --experiment=vision --size=smoke \
'--transform=nm(2, 4) | fake_quantize('"'"'int8'"'"')' --seed=0 \
--set=steps=5 --workdir=/gcs/bucket/sweep/runs/{names[2]}
python3 -m launch.run --experiment=vision --size=smoke \
'--transform=nm(2, 4) | fake_quantize('"'"'int8'"'"')' --seed=1 \
--set=steps=5 --workdir=/gcs/bucket/sweep/runs/{names[3]}"""


def _plan(tmp_path, **cloud):
  settings = conductor.Settings(
    experiment='vision',
    size='smoke',
    fields='steps=5',
    grid=_GRID,
    engine='xmanager',
    workers=2,
    workdir=str(tmp_path / 's'),
    cloud=xmanager.Cloud(**cloud),
    dry_run=True,
  )
  return conductor.checked(settings)


def test_the_dry_run_of_a_cloud(tmp_path):
  plan = _plan(tmp_path, name='vertex', requirements={'tpu_v3': 8}, workdir='/gcs/bucket/sweep')
  names = [point.name for point in plan.points]
  assert '\n'.join(conductor.commands(plan)) == _CLOUD.format(root=_ROOT.name, names=names)


def test_the_dry_run_of_this_machine_starts_this_python(tmp_path, capsys):
  assert conductor.conduct(_plan(tmp_path).settings) == 0
  heading, executor, *commands = capsys.readouterr().out.splitlines()
  assert heading.endswith('4 jobs, at most 2 at a time') and executor.endswith('xm_local.Local()')
  for command in commands:
    words = shlex.split(command)
    assert words[:3] == [sys.executable, '-m', 'launch.run']
    assert words[-1].startswith(f'--workdir={tmp_path}/s/runs/nm-2-4-')
  assert len(commands) == 4 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'cloud, message',
  [
    ({'name': 'vertex'}, 'needs --xm_workdir'),
    ({'name': 'kubernetes', 'workdir': 'relative'}, '--xm_workdir: a path'),
    ({'workdir': '/gcs/../etc'}, '--xm_workdir: a path'),
    ({'workdir': '/gcs/$(touch x)'}, '--xm_workdir: a path'),
    ({'requirements': {'tpu_v3': '8; touch x'}}, 'tpu_v3 takes a positive number'),
    ({'requirements': {'tpu_v3': 0}}, 'tpu_v3 takes a positive number'),
  ],
  ids=str,
)
def test_what_a_cloud_cannot_run_is_refused(tmp_path, cloud, message):
  with pytest.raises(ValueError, match=message):
    _plan(tmp_path, **cloud)


def test_the_launch_file_is_the_same_sweep(tmp_path):
  words = ['--experiment=vision', '--grid=seed=[0]', '--dry_run', f'--workdir={tmp_path}/s']
  said = subprocess.run(
    [sys.executable, 'launch/xm_launch.py', *words],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  ).stdout
  assert said.startswith("# XManager experiment 'jaxsparse-sweep': 1 jobs")


def test_a_missing_xmanager_is_a_sentence(monkeypatch):
  monkeypatch.setitem(sys.modules, 'xmanager', None)
  with pytest.raises(ValueError, match='needs xmanager: pip install xmanager'):
    xmanager.launch([xmanager.Trial('a', ())], xmanager.Cloud(), 1)
