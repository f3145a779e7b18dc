"""A run that keeps to the run directory's contract and trains nothing: what sweeps are tested with.

Seeds below 100 finish; `_WAYS` says what the others do. `--set=steps=N` is how long it takes.
"""

import json
import os
import pathlib
import re
import signal
import sys
import time

_WAYS = {
  100: 'crash',
  101: 'hang',
  102: 'nan',
  103: 'flaky',
  104: 'bad',
  105: 'preempted',
  106: 'silent',
  107: 'segfault',
  108: 'spawn',
}


def main():
  """Behaves as the seed says."""
  flags = dict(re.fullmatch(r'--(\w+)=(.*)', word, re.DOTALL).groups() for word in sys.argv[1:])
  seed, run = int(flags['seed']), pathlib.Path(flags['workdir'])
  steps = int((re.search(r'\bsteps=(\d+)', flags['set']) or [0, 3])[1])
  run.mkdir(parents=True, exist_ok=True)
  starts = run / 'starts'
  count = len(starts.read_text()) if starts.exists() else 0
  with open(starts, 'a') as file:
    file.write('x')
  first = count == 0
  (run / 'config.json').write_text(json.dumps({'config': {'steps': steps}}))
  (run / 'provenance.json').write_text(json.dumps({'machine': 'small', 'versions': 'none'}))
  way = _WAYS.get(seed)
  if way == 'crash':
    print('about to crash')
    raise RuntimeError('the crash of this test')
  if way == 'hang':
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
  if way == 'segfault':
    os.kill(os.getpid(), signal.SIGSEGV)
  if way == 'spawn' and os.fork() == 0:
    time.sleep(600)
  if way == 'bad':
    sys.exit(2)
  if way == 'silent' or (way == 'flaky' and first):
    sys.exit(0)
  if way == 'preempted' and first:
    sys.exit(42)
  _train(run, steps, seed, diverges=way == 'nan')
  record = {
    'model': flags['experiment'],
    'label': flags['transform'],
    'transform': flags['transform'],
    'baseline': flags['transform'] == 'identity()',
    'seed': seed,
    'accuracy': 0.9 + seed / 1000,
    'size_bytes': 1000 * len(flags['transform']),
    'flops_ideal': 1e6,
  }
  result = {'status': 'finished', 'record': record, 'figures': {'accuracy': 0.9, 'loss': 0.5}}
  (run / 'result.partial').write_text(json.dumps(result))
  (run / 'result.partial').rename(run / 'result.json')


def _train(run, steps, seed, diverges):
  with open(run / 'metrics.jsonl', 'w') as file:
    for step in range(1, steps + 1):
      if diverges and step == steps:
        file.write(json.dumps({'step': step, 'loss': None}) + '\n')
        failure = {
          'status': 'failed',
          'code': 44,
          'reason': f'Step {step}: loss is nan.',
          'step': step,
        }
        (run / 'failure.json').write_text(json.dumps(failure))
        sys.exit(44)
      file.write(json.dumps({'step': step, 'loss': (1 + seed % 7) / step}) + '\n')
      file.flush()
      time.sleep(0.02)


if __name__ == '__main__':
  main()
