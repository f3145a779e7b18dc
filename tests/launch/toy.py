"""A run without JAX for the supervisor's tests: ranks beat, wait for each other, and misbehave.

`--distributed=on --process_count=2 --process_id=1 --workdir=W` as the supervisor says; what
goes wrong: `--fault=sleep:1:7` (rank 1 at step 7), once, or in each attempt with `--always`.
"""

import argparse
import os
import pathlib
import signal
import sys
import time

if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from launch import exits
from launch.hosts import pulse

_SAVE_EVERY = 5
_NONE = pulse.Beat(0, 1, '', 0, 0, 0, 'start', 0, False)


def main():
  """Does its steps, each when all ranks have come to it."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', type=pathlib.Path)
  parser.add_argument('--distributed')
  parser.add_argument('--coordinator')
  parser.add_argument('--process_count', type=int, default=1)
  parser.add_argument('--process_id', type=int, default=0)
  parser.add_argument('--fault', default='')
  parser.add_argument('--always', action='store_true')
  parser.add_argument('--steps', type=int, default=12)
  parser.add_argument('--compile', type=float, default=0.0)
  args = parser.parse_args()
  if args.distributed == 'auto':
    args.process_count = int(os.environ['SLURM_NTASKS'])
    args.process_id = int(os.environ['SLURM_PROCID'])
  asked = []
  signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
  with pulse.Pulse(args.workdir / 'hosts', args.process_id, count=args.process_count) as beat:
    code = _work(args, beat, asked)
  sys.exit(code)


def _work(args, beat, asked):
  kind, rank, at = (args.fault or 'none:0:0').split(':')
  wrong = args.always or os.environ[pulse.ATTEMPT] == '1'
  saved = args.workdir / 'checkpoints'
  start = max((int(p.name) for p in saved.glob('*') if p.name.isdecimal()), default=0)
  folder = pulse.attempt_folder(args.workdir / 'hosts', int(os.environ[pulse.ATTEMPT]))
  stop = folder / 'stop'
  for step in range(start, args.steps):
    beat.at(step, 'data')
    if wrong and args.process_id == int(rank) and step == int(at):
      # Of one beat alone the supervisor cannot tell that it is not left of a former attempt.
      while (pulse.read(pulse.pulse_file(folder, int(rank))) or _NONE).beat < 4:
        beat.at(step, 'data')
        time.sleep(0.1)
      _misbehave(kind)
    beat.at(step, 'compile' if step == start else 'step')
    if step == start and args.process_id == 0:
      time.sleep(args.compile)
    _meet(folder, args, step)
    if asked:
      stop.touch()
    _meet(folder, args, step + 0.5)
    stopped = stop.exists()
    if args.process_id == 0 and (step % _SAVE_EVERY == _SAVE_EVERY - 1 or stopped):
      (saved / str(step + 1)).mkdir(parents=True, exist_ok=True)
      (saved / str(step + 1) / 'manifest.json').touch()
    if stopped:
      return exits.PREEMPTED
  if args.process_id == 0:
    (args.workdir / 'result.json').write_text('{}')
  beat.at(args.steps, 'done')
  return exits.DONE


def _misbehave(kind):
  if kind == 'sleep':
    time.sleep(600)
  elif kind == 'kill':
    os.kill(os.getpid(), signal.SIGKILL)
  elif kind == 'stop':
    os.kill(os.getpid(), signal.SIGSTOP)
  elif kind.startswith('code'):
    exits.leave(int(kind[4:]))


def _meet(folder, args, place):
  """Waits until every rank has come here; one that is gone is waited for until we are ended."""
  (folder / f'at-{args.process_id}').write_text(str(place))
  others = [folder / f'at-{rank}' for rank in range(args.process_count)]
  while not all(o.exists() and float(o.read_text() or -1) >= place for o in others):
    time.sleep(0.02)


if __name__ == '__main__':
  main()
