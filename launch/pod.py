"""Plans a run on a TPU slice and writes what starts it; needs no TPU.

`python -m launch.pod plan --topology=v5e:16x16 --mesh=data:16,model:16 --experiment=language
--size=1b --transform="rigl(0.9)"` compiles the real training step for the slice and says whether it
fits. Exit code 0: it does; 1: it does not, or state is replicated by accident; 2: bad input.

`python -m launch.pod render --name=first --topology=v5e:16x16 --image=... --bucket=...
--experiment=language ...` writes a GKE JobSet, or with `--engine=tpu_vm` the gcloud command. Flags
of `launch.run` that this file does not have may follow a `--`.
"""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import time

import jax
from absl import app
from absl import flags

import jaxsparse as jsp
from jaxsparse import reports
from launch import exits
from launch import programs
from launch.pods import aot
from launch.pods import forecast
from launch.pods import manifests
from launch.pods import topology
from launch.runs import loop
from launch.runs import overlay
from launch.runs import rundir

_COMMAND = 'launch.pod'
_TOPOLOGY = flags.DEFINE_string('topology', None, 'Slice, in chips: v5e:16x16, v5p:4x4x4, ...')
_MESH = flags.DEFINE_string(
  'mesh', '', 'Devices by axis, such as data:16,model:16. Default: all devices on data.'
)
_EXPERIMENT = flags.DEFINE_string('experiment', None, 'A file of experiments/, as in launch.run.')
_SIZE = flags.DEFINE_string('size', '', 'Named configuration of the experiment.')
_SET = flags.DEFINE_string('set', '', 'Fields to replace, as in launch.run.')
_TRANSFORM = flags.DEFINE_string('transform', 'identity()', 'Spelled transform.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed (0 or more) of weights and data order.')
_PROGRAM = flags.DEFINE_enum(
  'program',
  'step',
  ['step', 'refresh', 'both'],
  'plan: the ordinary step, the one that updates masks (minutes to compile), or both.',
)
_JSON = flags.DEFINE_string(
  'json', None, 'plan: file to write the figures to, whole or not at all.'
)
_NAME = flags.DEFINE_string(
  'name', None, 'render: name of the JobSet or of the TPU VM: a-z, 0-9 and -.'
)
_ENGINE = flags.DEFINE_enum('engine', 'gke', ['gke', 'tpu_vm'], 'render: what starts the run.')
_IMAGE = flags.DEFINE_string('image', None, 'render: container image with this repository in it.')
_CHECKOUT = flags.DEFINE_string(
  'checkout', None, 'render, tpu_vm without an image: this repository on the machines.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'render: run directory that all hosts see. Default on gke: /workdir/<name>, on the volume.',
)
_BUCKET = flags.DEFINE_string(
  'bucket', None, 'render, gke: bucket mounted at /workdir; with a hierarchical namespace.'
)
_CLAIM = flags.DEFINE_string(
  'claim', None, 'render, gke: instead of a bucket, a persistent volume claim (many writers).'
)
_CHIPS_PER_HOST = flags.DEFINE_integer(
  'chips_per_host', None, 'render: chips of each machine, 1, 4 or 8. Default 4.', 1
)
_MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts', 10, 'render, gke: how often the JobSet starts again after a loss.', 0
)
_GRACE = flags.DEFINE_integer(
  'grace', 60, 'render: seconds (at least 30) between SIGTERM and SIGKILL, to save in.', 30
)
_ZONE = flags.DEFINE_string('zone', None, 'render, tpu_vm: zone of the machines.')
_PROJECT = flags.DEFINE_string('project', None, 'render, tpu_vm: project of the machines.')
_OUTPUT = flags.DEFINE_string('output', None, 'render: file to write. Default: standard output.')

_COMMANDS = ('plan', 'render')


def main(argv):
  """Runs one of the two commands; bad input is a sentence and exit code 2."""
  # Neither command touches a TPU, even where there is one. Nothing has started JAX's backends yet.
  os.environ.update(topology.environment())
  jax.config.update('jax_platforms', 'cpu')
  try:
    if len(argv) < 2 or argv[1] not in _COMMANDS:
      given = overlay.short(argv[1]) if len(argv) > 1 else 'nothing'
      raise ValueError(f'the first word is plan or render, got {given}.')
    for flag in (_TOPOLOGY, _EXPERIMENT):
      if flag.value is None:
        raise ValueError(f'--{flag.name} is missing.')
    where = topology.parse(_TOPOLOGY.value)
    return plan(where, argv[2:]) if argv[1] == 'plan' else render(where, argv[2:])
  except (ValueError, OSError) as error:
    return programs.refuse(_COMMAND, error)


def plan(where: topology.Topology, rest: list[str]) -> int:
  """Compiles, prints the table, and returns the exit code.

  Args:
    where: the slice.
    rest: words left over, of which there must be none.

  Raises:
    ValueError: what was asked for is wrong; says what and what is known.
  """
  if rest:
    raise ValueError(f'plan takes flags only, got {overlay.short(" ".join(rest))}.')
  _check_folder(_JSON)
  config = _configure()
  mesh = aot.make_mesh(where, overlay.mesh_shape(_MESH.value))
  task = overlay.load(_EXPERIMENT.value).build(config)
  transform = overlay.recipe(_TRANSFORM.value, task.weights)
  if transform.spec.needs:
    needs = ', '.join(sorted(transform.spec.needs))
    raise ValueError(
      f'--transform: {jsp.spell(transform)} judges weights by data ({needs}); a plan has none.'
    )
  program = loop.program(task, transform, mesh)
  counted = aot.count_flops(program)
  wanted = {'step': False, 'refresh': True}
  programs = {
    name: forecast.figures(where, aot.compile_step(program, refresh=refresh), counted)
    for name, refresh in wanted.items()
    if _PROGRAM.value in (name, 'both')
  }
  roles, accidents = aot.account(program)
  state = {
    role: {**row._asdict(), 'ratio': row.a_device / row.expected} for role, row in roles.items()
  }
  fits = all(one['fits'] for one in programs.values())
  report = {
    'topology': where.name,
    'devices': where.devices,
    'mesh': dict(mesh.shape),
    'experiment': _EXPERIMENT.value,
    'size': _SIZE.value,
    'config': dataclasses.asdict(config),
    'transform': jsp.spell(program.transform),
    'parameters': sum(x.size for x in jax.tree.leaves(jax.eval_shape(task.init))),
    'examples': len(jax.tree.leaves(task.batch(0))[0]),
    'programs': programs,
    'state': state,
    'accidents': accidents,
    'fits': fits,
    'verdict': _verdict(where, fits, accidents),
    'versions': _versions(),
    'cpu_seconds': time.process_time(),
  }
  print(forecast.table(report))
  if _JSON.value is not None:
    rundir.write_json(pathlib.Path(_JSON.value), report)
  return exits.DONE if fits and not accidents else exits.FAILED


def render(where: topology.Topology, rest: list[str]) -> int:
  """Writes what starts the run, after checking that it can be started; returns the exit code.

  Args:
    where: the slice.
    rest: further flags of `launch.run`.

  Raises:
    ValueError: a value is unknown, out of range, or could mean something to a shell or to YAML.
  """
  _check_folder(_OUTPUT)
  _configure()
  jsp.parse(_TRANSFORM.value)
  sizes = overlay.mesh_shape(_MESH.value)
  if -1 not in sizes.values() and sizes['data'] * sizes['model'] != where.devices:
    raise ValueError(
      f'--mesh={_MESH.value} needs {sizes["data"] * sizes["model"]} devices, {where.name} has '
      f'{where.devices}.'
    )
  given = [_EXPERIMENT, _SIZE, _SET, _TRANSFORM, _SEED, _MESH]
  words = [f'--{flag.name}={flag.value}' for flag in given if flag.present or flag is _EXPERIMENT]
  job = manifests.Job(
    name=_NAME.value or '',
    where=where,
    words=(*words, *rest),
    image=_IMAGE.value,
    checkout=_CHECKOUT.value,
    workdir=_WORKDIR.value,
    bucket=_BUCKET.value,
    claim=_CLAIM.value,
    chips_per_host=_CHIPS_PER_HOST.value,
    max_restarts=_MAX_RESTARTS.value,
    grace_seconds=_GRACE.value,
    zone=_ZONE.value,
    project=_PROJECT.value,
  )
  text = manifests.jobset(job) if _ENGINE.value == 'gke' else manifests.gcloud(job)
  if _OUTPUT.value is None:
    print(text, end='')
  else:
    reports.write_whole(_OUTPUT.value, text)
  return exits.DONE


def _check_folder(flag):
  if flag.value is not None and not pathlib.Path(flag.value).absolute().parent.is_dir():
    raise ValueError(f'--{flag.name}={flag.value}: there is no such folder.')


def _configure():
  values = {**overlay.fields(_SET.value), 'seed': _SEED.value}
  return overlay.configure(_EXPERIMENT.value, _SIZE.value, values)


def _verdict(where, fits, accidents):
  if accidents:
    return f'Not as it should be: {len(accidents)} leaves are replicated by accident.'
  return f'It fits on {where.name}.' if fits else f'It does not fit on {where.name}.'


def _versions():
  return ', '.join(f'{name} {importlib.metadata.version(name)}' for name in ('jax', 'libtpu'))


if __name__ == '__main__':
  app.run(main, flags_parser=functools.partial(programs.parse, _COMMAND))
