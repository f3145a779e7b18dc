"""What starts a run on a pod: a GKE JobSet, or the gcloud command that reaches every machine.

Both start one `launch.supervise` on each host. What comes from outside is checked against what the
name, image or path may be; where it is free text, the spelled transform above all, it is quoted:
for the shell by `shlex`, for YAML as JSON strings, which every YAML reader takes as they are.

JobSet: https://jobset.sigs.k8s.io; exit codes: `launch/exits.py`.
"""

import dataclasses
import json
import posixpath
import re
import shlex
from collections.abc import Iterator
from typing import Any

from launch import exits
from launch.pods import topology

_MOUNT = '/workdir'
_MEND_FIRST = [exits.FAILED, exits.BAD_INPUT, exits.DIVERGED, exits.SAVE_FAILED]
_START_AGAIN = [exits.PREEMPTED, exits.PEER_LOST, exits.STUCK]
_LONGEST = 10_000
# What the supervisor says itself, and what would read flags from elsewhere.
_NOT_OURS = {'workdir', 'distributed', 'coordinator', 'process_count', 'process_id'}
_SMUGGLERS = {'flagfile', 'fromenv', 'tryfromenv', 'undefok'}

_PATTERNS = {
  # Pods are called <name>-run-0-<index>-<five letters>, in at most 63.
  'name': (r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', 'at most 40 of a-z, 0-9 and -, a letter first'),
  'image': (r'[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}', 'registry/image:tag'),
  'checkout': (r'[A-Za-z0-9._/-]{1,255}', 'a path of letters, digits, . _ - and /'),
  'workdir': (r'/[A-Za-z0-9._/-]{1,255}', 'an absolute path of letters, digits, . _ - and /'),
  'bucket': (r'[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]', '3 to 63 of a-z, 0-9, . _ and -'),
  'claim': (r'[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?', 'at most 63 of a-z, 0-9 and -'),
  'zone': (r'[a-z]+-[a-z]+[0-9]{1,2}-[a-z]', 'a zone such as us-west4-a'),
  'project': (r'[a-z][a-z0-9.:-]{4,61}[a-z0-9]', 'a project id'),
}


@dataclasses.dataclass(frozen=True)
class Job:
  """A run on a pod.

  Attributes:
    name: of the JobSet or the TPU VM.
    where: the slice.
    words: flags of `launch.run`, `--name=value` each.
    image: container image; None on TPU VMs that have a checkout.
    checkout: path of this repository on TPU VMs without an image.
    workdir: run directory that all hosts share; None is `/workdir/<name>`, for GKE alone.
    bucket: bucket behind `/workdir`.
    claim: persistent volume claim behind `/workdir`.
    chips_per_host: as in `Topology.hosts`.
    max_restarts: of the JobSet.
    grace_seconds: between SIGTERM and SIGKILL.
    zone: of TPU VMs.
    project: of TPU VMs.

  Raises:
    ValueError: a value that is not what its name says; quotes it.
  """

  name: str
  where: topology.Topology
  words: tuple[str, ...] = ()
  image: str | None = None
  checkout: str | None = None
  workdir: str | None = None
  bucket: str | None = None
  claim: str | None = None
  chips_per_host: int | None = None
  max_restarts: int = 10
  grace_seconds: int = 60
  zone: str | None = None
  project: str | None = None

  def __post_init__(self):
    for field, (pattern, what) in _PATTERNS.items():
      value = getattr(self, field)
      if value is not None and not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f'--{field}: expected {what}, got {_short(value)}.')
    for field in ('workdir', 'checkout'):
      value = getattr(self, field) or ''
      if '..' in value.split('/') or value.startswith('-'):
        raise ValueError(f'--{field}: expected a path without .., got {_short(value)}.')
    for word in self.words:
      _check_word(word)
    if self.grace_seconds < 30:
      raise ValueError(f'--grace: expected at least 30 seconds, got {self.grace_seconds}.')
    self.where.hosts(self.chips_per_host)

  def command(self, workdir: str) -> list[str]:
    """The words of the command that one host runs."""
    # The supervisor kills what has not saved a little before the host would be killed.
    ours = [f'--workdir={workdir}', f'--grace={self.grace_seconds - 5}']
    if self.where.hosts(self.chips_per_host) > 1:
      ours.append('--distributed=on')
    return ['python', '-m', 'launch.supervise', *ours, '--', *self.words]


def jobset(job: Job) -> str:
  """Returns the manifest of a GKE JobSet.

  It starts again, whole, when a host is preempted, lost or stuck (codes 42, 43, 75, or a signal),
  and fails at once when something must be mended first (codes 1, 2, 44, 74).

  Args:
    job: with an image, and a bucket or a claim.

  Raises:
    ValueError: one of them is missing, or the work directory is not on the volume.

  Example:
    >>> job = Job('first', topology.parse('v5e:4x4'), image='registry/run:1', claim='runs')
    >>> print(jobset(job).splitlines()[2])
    kind: "JobSet"
  """
  _leave_out(job, 'a GKE JobSet', 'zone', 'project', 'checkout')
  if job.image is None:
    raise ValueError('--image is missing.')
  if (job.bucket is None) == (job.claim is None):
    raise ValueError('A JobSet needs --bucket or --claim (one of them) for its work directory.')
  workdir = job.workdir or f'{_MOUNT}/{job.name}'
  if posixpath.normpath(workdir) == _MOUNT or not workdir.startswith(f'{_MOUNT}/'):
    raise ValueError(f'--workdir: expected a folder of {_MOUNT}, the volume, got {workdir!r}.')
  hosts = job.where.hosts(job.chips_per_host)
  template = {
    'spec': {
      'parallelism': hosts,
      'completions': hosts,
      'backoffLimit': 0,
      'podFailurePolicy': {'rules': [_rule('FailJob', _MEND_FIRST), _rule('Count', _START_AGAIN)]},
      'template': _pod(job, workdir, hosts),
    }
  }
  manifest = {
    'apiVersion': 'jobset.x-k8s.io/v1alpha2',
    'kind': 'JobSet',
    'metadata': {
      'name': job.name,
      # All pods on the one slice of one node pool.
      'annotations': {
        'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'
      },
    },
    'spec': {
      'failurePolicy': {
        'maxRestarts': job.max_restarts,
        'rules': [{'action': 'FailJobSet', 'onJobFailureReasons': ['PodFailurePolicy']}],
      },
      'replicatedJobs': [{'name': 'run', 'replicas': 1, 'template': template}],
    },
  }
  head = f'# Start: kubectl apply -f FILE. Stop: kubectl delete jobset {job.name}; it saves first.'
  return '\n'.join([head, *_yaml(manifest)]) + '\n'


def gcloud(job: Job) -> str:
  """Returns the command that starts a run on every machine of a TPU VM.

  Args:
    job: with a work directory, and an image or a checkout.

  Raises:
    ValueError: one of them is missing.

  Example:
    >>> job = Job('first', topology.parse('v5e:4x4'), checkout='jaxsparse', workdir='/shared/first')
    >>> gcloud(job).splitlines()[-1].partition(" '--command=")[0]
    'gcloud compute tpus tpu-vm ssh first --worker=all'
  """
  _leave_out(job, 'a TPU VM', 'bucket', 'claim')
  if job.workdir is None:
    raise ValueError('--workdir is missing: a folder that all machines of the TPU VM share.')
  if (job.image is None) == (job.checkout is None):
    raise ValueError('A TPU VM needs --image or --checkout (one of them).')
  words = job.command(job.workdir)
  if job.image is None:
    # The machines' own Python has no other name.
    inner = f'cd {shlex.quote(job.checkout)} && exec {shlex.join(["python3", *words[1:]])}'
  else:
    mount = f'--volume={job.workdir}:{job.workdir}'
    limits = [f'--stop-timeout={job.grace_seconds}', '--privileged', '--net=host']
    inner = shlex.join(['sudo', 'docker', 'run', '--rm', *limits, mount, job.image, *words])
  places = [f'--{n}={v}' for n, v in (('zone', job.zone), ('project', job.project)) if v]
  outer = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', job.name, *places, '--worker=all']
  return (
    f'# {job.where.name}. The same command resumes; a code 42 says that it should be given again.\n'
    f'{shlex.join([*outer, f"--command={inner}"])}\n'
  )


def _leave_out(job, what, *fields):
  for field in fields:
    if getattr(job, field) is not None:
      raise ValueError(f'--{field} says nothing to {what}; leave it out.')


def _pod(job, workdir, hosts):
  chips = {'google.com/tpu': job.where.chips // hosts}
  container = {
    'name': 'run',
    'image': job.image,
    # Kubernetes puts variables where it finds $(NAME); $$ is a plain dollar.
    'command': [word.replace('$', '$$') for word in job.command(workdir)],
    'ports': [{'containerPort': 8471}],
    'resources': {'requests': chips, 'limits': chips},
    'volumeMounts': [{'name': 'workdir', 'mountPath': _MOUNT}],
  }
  if job.claim is not None:
    volume = {'persistentVolumeClaim': {'claimName': job.claim}}
  else:
    attributes = {'bucketName': job.bucket, 'mountOptions': 'implicit-dirs'}
    volume = {'csi': {'driver': 'gcsfuse.csi.storage.gke.io', 'volumeAttributes': attributes}}
  spec = {
    'restartPolicy': 'Never',
    'terminationGracePeriodSeconds': job.grace_seconds,
    'nodeSelector': {
      'cloud.google.com/gke-tpu-accelerator': job.where.chip.label,
      'cloud.google.com/gke-tpu-topology': job.where.shape,
    },
    'containers': [container],
    'volumes': [{'name': 'workdir', **volume}],
  }
  if job.bucket is None:
    return {'spec': spec}
  return {'metadata': {'annotations': {'gke-gcsfuse/volumes': 'true'}}, 'spec': spec}


def _rule(action, codes):
  return {
    'action': action,
    'onExitCodes': {'containerName': 'run', 'operator': 'In', 'values': codes},
  }


def _yaml(value: Any, indent: str = '') -> Iterator[str]:
  """Lines of block YAML whose scalars are JSON; text is printable ASCII, so JSON is YAML."""
  entries = value.items() if isinstance(value, dict) else ((None, item) for item in value)
  for key, item in entries:
    lead = indent + ('- ' if key is None else f'{key}:')
    if not isinstance(item, (dict, list)):
      yield f'{lead}{"" if key is None else " "}{json.dumps(item)}'
    elif key is None:
      first, *others = _yaml(item, indent + '  ')
      yield lead + first[len(indent) + 2 :]
      yield from others
    else:
      yield lead
      yield from _yaml(item, indent + '  ')


def _check_word(word):
  name = word.partition('=')[0].removeprefix('--')
  if len(word) > _LONGEST or not word.isascii() or not word.isprintable():
    raise ValueError(
      f'Flags are printable ASCII of at most {_LONGEST} letters, got {_short(word)}.'
    )
  if not re.fullmatch(r'--[a-z][a-z0-9_]*(=.*)?', word):
    raise ValueError(f'Flags of launch.run are --name=value, got {_short(word)}.')
  if name.removeprefix('no') in _SMUGGLERS or name in _NOT_OURS:
    raise ValueError(f'--{name} may not be given to the run: the supervisor says what it needs.')


def _short(text):
  return repr(text if len(text) <= 80 else text[:77] + '...')
