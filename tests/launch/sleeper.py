"""`launch.run`, asleep once in its data function: `SLEEPS=rank:step`, in the first attempt only."""

import os
import time

from absl import app

from experiments import vision
from launch import programs
from launch import run
from launch.hosts import pulse


def _asleep_at(build, rank, step):
  def slow(config):
    task = build(config)

    def batch(position):
      if position == step and f'--process_id={rank}' in os.sys.argv:
        time.sleep(3600)
      return task.batch(position)

    return task._replace(batch=batch)

  return slow


if __name__ == '__main__':
  rank_, step_ = os.environ['SLEEPS'].split(':')
  if os.environ[pulse.ATTEMPT] == '1':
    vision.build = _asleep_at(vision.build, rank_, int(step_))
  app.run(run.main, flags_parser=lambda argv: programs.parse('launch.run', argv))
