"""The command line of one run: what is refused, what is left behind, what a second start says."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CASES = pathlib.Path(__file__).with_name('run_cases.py')

# Arguments beside --experiment=vision --workdir=<new>, and what the refusal says.
_REFUSED = [
  (['--experiment=visoin'], 'unknown; known are filetype, language, sentence, vision'),
  (['--experiment=../vision'], 'unknown; known are'),
  (['--size=huge'], "'huge'"),
  (['--set=stps=3'], 'Did you mean steps?'),
  (['--set=steps=-1'], 'steps'),
  (['--set=steps="many"'], 'steps: expected int'),
  (['--set=seed=1'], 'seed has a flag of its own'),
  (['--set=__import__("os")'], 'expected name=literal'),
  (['--seed=-1'], 'seed'),
  (['--seed=x'], 'seed'),
  (['--transform=rigl(0.9'], 'rigl(0.9'),
  (['--transform=rigll(0.9)'], 'not a known word'),
  (['--transform=rigl(1.5)'], '1.5'),
  (['--transform=__import__("os").system("touch pwned")'], 'Python expression'),
  (["--transform=at('nothing', nm(2, 4))"], 'nothing'),
  (['--transform=nm(3, 7)'], 'kernel'),
  (['--mesh=rows:2'], 'expected axes data and model'),
  (['--mesh=data:3'], 'needs 3 devices, there are 2'),
  (['--set=batch_size=3'], 'batch_size: found 3, expected a multiple of the 2 devices'),
  (['--workdir=~nobody of that name/x'], "--workdir='~nobody of that name/x'"),
  (['--workdir=bad\udcffname'], 'surrogates not allowed'),
  (['--checkpoint_every=0'], 'checkpoint_every'),
  (['--on_nan=ignore'], 'on_nan'),
  (['--distributed=perhaps'], 'distributed'),
  (['--distributed=off', '--coordinator=localhost:1'], '--distributed=off never joins'),
  (['--no_such_flag=1'], "Unknown command line flag 'no_such_flag'"),
  (['stray'], 'Flags only'),
]


def run(*arguments):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  return subprocess.run(
    [sys.executable, '-m', 'launch.run', *arguments],
    cwd=_ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


class RunTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_what_cannot_be_is_refused_in_a_sentence_before_anything_is_written(self):
    workdir = self.folder / 'run'
    lists = [['--experiment=vision', f'--workdir={workdir}', *more] for more, _ in _REFUSED]
    done = subprocess.run(
      [sys.executable, _CASES],
      input=json.dumps(lists),
      cwd=self.folder,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
        'PYTHONPATH': str(_ROOT),
      },
      capture_output=True,
      text=True,
      timeout=300,
      check=True,
    )
    for (more, said), outcome in zip(_REFUSED, json.loads(done.stdout.splitlines()[-1])):
      with self.subTest(ascii(more[0])):
        self.assertEqual(outcome['code'], 2, outcome)
        self.assertIn(said, outcome['said'])
        self.assertNotIn('Traceback', outcome['said'])
    self.assertEqual(list(self.folder.iterdir()), [])

  def test_a_run_leaves_everything_and_a_second_start_knows(self):
    workdir = self.folder / 'run'
    same = [
      '--experiment=vision',
      '--size=smoke',
      '--set=steps=6',
      '--seed=2',
      '--log_every=2',
      '--transform=nm(2, 4)',
      f'--workdir={workdir}',
      '--checkpoint_every=4',
    ]
    done = run(*same)
    self.assertEqual(done.returncode, 0, done.stderr)
    read = lambda name: json.loads((workdir / name).read_text())
    config, result, provenance = map(read, ('config.json', 'result.json', 'provenance.json'))
    self.assertEqual((config['experiment'], config['config']['seed']), ('vision', 2))
    self.assertRegex(config['transform'], r"^at\('.*', nm\(2, 4\)\)$")
    self.assertIn('jax 0.', provenance['versions'])
    self.assertIn('revision', provenance)
    self.assertNotIn(str(_ROOT), (workdir / 'provenance.json').read_text())
    self.assertEqual((result['status'], result['steps']), ('finished', 6))
    self.assertEqual(result['record']['sparsity'], 0.5)
    self.assertLess(0, result['record']['accuracy'])
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    self.assertEqual([line['step'] for line in lines], [2, 4, 6])
    self.assertEqual(sorted(f.name for f in (workdir / 'checkpoints').iterdir()), ['4', '6'])
    self.assertLen(list((workdir / 'tensorboard').iterdir()), 1)
    events = [
      json.loads(line)['event'] for line in (workdir / 'ledger.jsonl').read_text().splitlines()
    ]
    self.assertEqual(events, ['start', 'save', 'save', 'finished'])

    before = {f: f.stat().st_mtime_ns for f in workdir.rglob('*') if f.name != 'lock'}
    again = run(*same)
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertIn('Finished already', again.stderr)
    other = run(*same, '--transform=nm(1, 4)')
    self.assertEqual(other.returncode, 2)
    self.assertIn('holds another run', other.stderr)
    self.assertIn('asked "at(\'', other.stderr)
    after = {f: f.stat().st_mtime_ns for f in workdir.rglob('*') if f.name != 'lock'}
    self.assertEqual(before, after)


if __name__ == '__main__':
  absltest.main()
