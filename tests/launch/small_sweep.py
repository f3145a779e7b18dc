"""`launch.sweep` with the small run in place of the real one, for tests that kill it."""

import functools

from absl import app

from launch import programs
from launch import sweep
from launch.sweeps import conductor

if __name__ == '__main__':
  small = functools.partial(conductor.Settings, program='tests.launch.small_run', grace_seconds=1.0)
  sweep.conductor.Settings = small
  app.run(sweep.main, flags_parser=lambda argv: programs.parse('launch.sweep', argv))
