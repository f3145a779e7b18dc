"""An attempt of a supervised run: what the supervisors of its hosts agree on, through files.

Each attempt has a folder, so that nothing of a former one is mistaken for news. The supervisor that
first finds a fault writes `end.json`, once, and the others follow it: all end the same attempt for
the same reason and go on to the same next one. There is no clock in it, as hosts' clocks differ.
"""

import json
import pathlib
import re
import shutil
from typing import NamedTuple

from launch.hosts import pulse
from launch.hosts import verdict

_KEPT = 8  # attempts whose stacks and beats stay to be looked at


class End(NamedTuple):
  """How an attempt ended.

  Attributes:
    fault: what ended it.
    final: whether no other attempt follows.
  """

  fault: verdict.Fault
  final: bool


def join(hosts: pathlib.Path, after: int, *, alone: bool) -> int:
  """Returns the number of the attempt to take part in, whose folder exists then.

  Args:
    hosts: folder `hosts` of the run directory.
    after: the attempt taken part in before, 0 for none.
    alone: no other supervisor takes part, so an attempt that was left open is not continued.
  """
  hosts.mkdir(parents=True, exist_ok=True)
  numbers = _numbers(hosts)
  newest = max([after, *numbers])
  # Another supervisor opened it and waits there; or its supervisors were all killed, and then what
  # lies in it never changes and counts as nothing.
  is_open = newest > after and read_end(pulse.attempt_folder(hosts, newest)) is None
  number = newest if is_open and not alone else newest + 1
  pulse.attempt_folder(hosts, number).mkdir(exist_ok=True)
  for old in sorted(numbers)[:-_KEPT]:
    shutil.rmtree(pulse.attempt_folder(hosts, old), ignore_errors=True)
  return number


def conclude(folder: pathlib.Path, end: End) -> tuple[End, bool]:
  """Ends an attempt for all hosts; returns how it ended, and whether this call was the first.

  Args:
    folder: of the attempt.
    end: how, if nobody was first.
  """
  text = json.dumps({**end.fault._asdict(), 'final': end.final}) + '\n'
  try:
    with open(folder / 'end.json', 'x', encoding='utf-8') as file:
      file.write(text)
    return end, True
  except FileExistsError:
    return read_end(folder) or end, False
  except OSError:  # no room: each host goes by what it found itself
    return end, True


def read_end(folder: pathlib.Path) -> End | None:
  """Returns how an attempt ended; None while it goes on."""
  try:
    found = json.loads((folder / 'end.json').read_bytes())
    fault = verdict.Fault(*(found[name] for name in verdict.Fault._fields))
    return End(fault, bool(found['final']))
  except (OSError, ValueError, KeyError, TypeError):
    return None  # not there, or not whole yet


def committed(workdir: pathlib.Path) -> int:
  """Returns the newest step with a whole checkpoint, -1 when there is none."""
  folder = workdir / 'checkpoints'
  steps = folder.iterdir() if folder.is_dir() else ()
  whole = [int(s.name) for s in steps if s.name.isdecimal() and (s / 'manifest.json').exists()]
  return max(whole, default=-1)


def _numbers(hosts):
  names = (re.fullmatch(r'attempt-([0-9]{1,9})', f.name) for f in hosts.iterdir())
  return [int(name[1]) for name in names if name]
