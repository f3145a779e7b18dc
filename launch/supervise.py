"""Watches the processes of a run on one host: ends what is lost or stuck, and starts it again.

`python -m launch.supervise --workdir=W --local=2 --limit=60 -- --experiment=vision ...` starts
`launch.run` with the flags after `--`, once or several times. Start one on every host of a pod with
the same flags and a shared work directory: each looks after its own processes and watches the beats
of all. What it finds is in `ledger.jsonl` (event `fault`: code, lost rank, reason, stacks), stacks
and beats lie in `hosts/attempt-<n>/`. Its exit code is the run's, see `launch/exits.py`.
"""

import contextlib
import functools
import os
import pathlib
import signal
import sys

from absl import app
from absl import flags

from launch import documents
from launch import exits
from launch import programs
from launch.hosts import attempt
from launch.hosts import family
from launch.hosts import pulse
from launch.hosts import surroundings
from launch.hosts import verdict
from launch.runs import ledger

_COMMAND = 'launch.supervise'
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Run directory, on a file system that all hosts of the run share.'
)
_LOCAL = flags.DEFINE_integer('local', 1, 'Processes on this host; accelerators want one.', 1)
_PROCESSES = flags.DEFINE_integer(
  'processes',
  None,
  'Processes of the run on all hosts. Default: --local, or what JAX finds inside a pod.',
  1,
)
_FIRST_PROCESS = flags.DEFINE_integer(
  'first_process', 0, 'Number of the first process on this host.', 0
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of process 0; needed with processes on other hosts. Default: a free local port.',
)
_DISTRIBUTED = flags.DEFINE_enum(
  'distributed',
  'auto',
  ['auto', 'on'],
  'Inside a pod: on makes a pod that cannot be found an error, never so many single hosts.',
)
_LIMIT = flags.DEFINE_float(
  'limit', 60.0, 'Seconds without a sign of life, or without a step, that end the attempt.', 1.0
)
_COMPILE_LIMIT = flags.DEFINE_float(
  'compile_limit',
  900.0,
  'Seconds for what takes long once: start, compilation, saving and evaluation.',
  1.0,
)
_GRACE = flags.DEFINE_float(
  'grace', 25.0, 'Seconds to save after SIGTERM; schedulers kill after 30.', 1.0
)
_RESTARTS = flags.DEFINE_integer(
  'restarts', 3, 'Restarts in a row without a new checkpoint before giving up; 0 never restarts.', 0
)
_MODULE = flags.DEFINE_string('module', 'launch.run', 'Python module that is started.')

# What the supervisor says to its processes itself.
_OURS = ('workdir', 'distributed', 'coordinator', 'process_count', 'process_id')
_LONGEST_PAUSE = 60.0


def main(argv):
  """Runs attempts until one is final, and leaves with its code."""
  if problem := _problem(argv):
    return programs.refuse(_COMMAND, problem)
  workdir = pathlib.Path(_WORKDIR.value)
  try:
    workdir = workdir.expanduser().absolute()
    (workdir / 'hosts').mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError) as error:
    why = getattr(error, 'strerror', None) or error
    return programs.refuse(_COMMAND, f'--workdir={workdir} cannot be written to: {why}')
  asked = family.Asked()
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, asked)
  return _attempts(workdir, argv[1:], asked)


def _attempts(workdir, rest, asked):
  limits = verdict.Limits(
    _LIMIT.value, max(_LIMIT.value, _COMPILE_LIMIT.value), min(1.0, _LIMIT.value / 8)
  )
  number = fruitless = 0
  best = attempt.committed(workdir)
  while True:
    number = attempt.join(workdir / 'hosts', number, alone=_alone())
    folder = pulse.attempt_folder(workdir / 'hosts', number)
    first = None if _inside_a_pod() else _FIRST_PROCESS.value
    commands = _commands(workdir, rest)
    members = family.start(commands, first=first, attempt=number, beat=limits.beat)
    try:
      found = family.watch(members, folder, _total(), limits, asked, _GRACE.value)
      if isinstance(found, int):
        return found
      newest = attempt.committed(workdir)
      fruitless, best = (0, newest) if newest > best else (fruitless, best)
      done = (workdir / 'result.json').exists()
      again = found.code in exits.RESTARTED and fruitless < _RESTARTS.value and not asked.at
      end, is_first = attempt.conclude(folder, attempt.End(found, done or not again))
    finally:
      family.end(members, folder)
    pause = min(_LONGEST_PAUSE, 2.0**fruitless)
    _tell(workdir, folder, number, end, pause if not end.final else None, record=is_first)
    if end.final:
      return exits.DONE if done else end.fault.code
    fruitless += 1
    if asked.wait(pause):
      return exits.PREEMPTED


def _problem(argv):
  """What is wrong with the flags, in a sentence; '' when nothing is."""
  given = [word.lstrip('-').partition('=')[0] for word in argv[1:]]
  taken = sorted({name for name in given if name in _OURS})
  strays = [word for word in argv[1:] if not word.startswith('--')]
  total = _PROCESSES.value or _LOCAL.value
  if _WORKDIR.value is None:
    return '--workdir is missing.'
  if taken:
    return f'--{taken[0]} is for the supervisor to say: give it before the --.'
  if strays:
    return f"after -- only --name=value, got '{strays[0][:80]}'."
  if _FIRST_PROCESS.value + _LOCAL.value > total and not _inside_a_pod():
    return (
      f'--first_process={_FIRST_PROCESS.value} and --local={_LOCAL.value} pass --processes={total}.'
    )
  if total > _LOCAL.value and _COORDINATOR.value is None:
    return '--coordinator=host:port is needed with processes on other hosts.'
  if _inside_a_pod() and _LOCAL.value > 1:
    return '--local above 1 needs --processes and --coordinator inside a pod.'
  return ''


def _inside_a_pod():
  """Whether the processes find each other by themselves: then they say who they are."""
  explicit = _PROCESSES.value is not None or _COORDINATOR.value is not None
  sign = surroundings.signs_of_a_pod(os.environ) or surroundings.has_tpu_chips(os.environ)
  return bool(sign) and not explicit


def _alone():
  return not _inside_a_pod() and _total() == _LOCAL.value


def _total():
  return None if _inside_a_pod() else _PROCESSES.value or _LOCAL.value


def _commands(workdir, rest):
  """One command line a process."""
  base = [sys.executable, '-m', _MODULE.value, f'--workdir={workdir}', *rest]
  if _inside_a_pod():
    return [[*base, f'--distributed={_DISTRIBUTED.value}']]
  if _total() == 1:
    return [[*base, f'--distributed={"on" if _DISTRIBUTED.value == "on" else "off"}']]
  # Each attempt a new port: the old one may still be held by what was just killed.
  at = _COORDINATOR.value or f'127.0.0.1:{family.free_port()}'
  joined = [*base, '--distributed=on', f'--coordinator={at}', f'--process_count={_total()}']
  ranks = range(_FIRST_PROCESS.value, _FIRST_PROCESS.value + _LOCAL.value)
  return [[*joined, f'--process_id={rank}'] for rank in ranks]


def _tell(workdir, folder, number, end, pause, *, record):
  """Says what happened on stderr; whoever found it first writes it down."""
  fault = end.fault
  stacks = sorted(str(s.relative_to(workdir)) for s in folder.glob('*.stacks') if s.stat().st_size)
  then = f'starting again in {pause:g} s' if pause is not None else 'not started again'
  saved = attempt.committed(workdir)
  kept = f'step {saved} is saved' if saved >= 0 else 'nothing is saved'
  print(
    f'launch.supervise: attempt {number}: {fault.reason}; code {fault.code}, {kept}, {then}.'
    + (f' Stacks: {", ".join(stacks)}.' if stacks else ''),
    file=sys.stderr,
    flush=True,
  )
  if not record:
    return
  event = 'preempted' if fault.code == exits.PREEMPTED else 'fault'
  facts = dict(attempt=number, code=fault.code, lost_rank=fault.rank, reason=fault.reason)
  ledger.append(workdir, event, **facts, step=fault.step, saved=saved, stacks=stacks)
  # What the run found wrong it has said itself; what it was ended for it could not say.
  if end.final and fault.code in exits.RESTARTED and not (workdir / 'result.json').exists():
    failure = dict(status='failed', code=fault.code, reason=fault.reason, step=fault.step)
    with contextlib.suppress(OSError):  # a full disk must not cost the exit code
      documents.write(workdir / 'failure.json', failure)


if __name__ == '__main__':
  app.run(main, flags_parser=functools.partial(programs.parse, _COMMAND))
