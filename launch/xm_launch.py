"""The launch file for those who start things with XManager's own command.

    xmanager launch launch/xm_launch.py -- --experiment=language --size=1b \\
      --grid="transform=['nm(2, 4)', 'rigl(0.9)']" --xm_cloud=vertex --xm_workdir=/gcs/bucket/sweep

The same as `python -m launch.sweep --engine=xmanager`; `--dry_run` prints the exact commands.
"""

import pathlib
import sys

from absl import app
from absl import flags

# XManager's command puts this file's own folder on the path, not the repository.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from launch import programs
from launch import sweep


def main(argv):
  """Runs the sweep's own main under XManager."""
  flags.FLAGS.engine = 'xmanager'
  return sweep.main(argv)


if __name__ == '__main__':
  app.run(main, flags_parser=lambda argv: programs.parse('launch.xm_launch', argv))
