"""Runs the digits experiment and writes its report: what `make demo` starts."""

import dataclasses
import datetime
import shlex
import time

from absl import app
from absl import flags
from absl import logging

from experiments import digits
from jaxsparse import reports

_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Run directory, new or empty. Default: runs/digits-<date>-<time>, so that no run hides another.',
)
_CONFIG = flags.DEFINE_string(
  'config', '', "'' for the whole (about three minutes of CPU time) or 'smoke' (under one minute)."
)
_MODELS = flags.DEFINE_list(
  'models', None, 'Comma-separated models: cnn, transformer. Default: those of the config.'
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Seed (0 or more) of initialization, order and augmentation; the split never changes.'
)


def main(argv):
  """Checks every flag, then works, then writes: a run directory is there whole or not at all."""
  config, workdir = _checked(argv)
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # jax tells at INFO which accelerators it did not find
  with reports.show_progress('digits', config.tasks) as progress:
    results = digits.run(config, progress=progress)
  facts = reports.provenance(
    _command(),
    seed=str(config.seed),
    CPU_time=f'{time.process_time():.0f} s',
  )
  reports.write_directory(workdir, digits.files(results, provenance=facts))
  reports.show_table(results.records)
  print(f'CPU time {time.process_time():.0f} s. Written: {workdir}/report.html')
  print('with pareto.png and results.jsonl beside it.')


def _command():
  """What to type to see these numbers again; the run directory is nobody else's business."""
  values = {'config': _CONFIG.value, 'models': ','.join(_MODELS.value or ()), 'seed': _SEED.value}
  given = [f'--{name}={value}' for name, value in values.items() if value]
  return shlex.join(['python', '-m', 'launch.demo', *given])


def _checked(argv):
  if len(argv) > 1:
    raise app.UsageError(f'Flags only, got {argv[1:]}.')
  try:
    config = digits.get_config(_CONFIG.value)
    chosen = tuple(_MODELS.value) if _MODELS.present else config.models
    config = dataclasses.replace(config, models=chosen, seed=_SEED.value)
    now = datetime.datetime.now()
    return config, reports.check_directory(_WORKDIR.value or f'runs/digits-{now:%Y%m%d-%H%M%S}')
  except ValueError as error:
    raise app.UsageError(str(error)) from error


if __name__ == '__main__':
  app.run(main)
