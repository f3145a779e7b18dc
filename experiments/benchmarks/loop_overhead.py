"""Question: what do metrics, asynchronous checkpoints and watching cost beside a bare jitted loop?

Both sides run the same compiled step of the benchmark language model on the same batches. One is a
`for` loop and nothing else; the other is the run loop with everything on: metrics every 10 steps as
JSON lines and for TensorBoard, a checkpoint with manifest and fingerprints every 100, SIGTERM asked
for at every step, signs of life twice a second. Time is CPU time of all threads, so what happens in
the background counts; rounds interleave and the ratio is that of their medians.

Command: python -m experiments.benchmarks.loop_overhead
Peer: the bare loop. Limit: 1.0; anything below 0.97 is a defect.
"""

import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as jsp
from experiments import language
from launch.hosts import preemption
from launch.hosts import pulse
from launch.runs import loop
from launch.runs import metrics

_WARM, _STEPS, _ROUNDS = 50, 100, 9
_TRANSFORM = 'rigl(0.9, every=1000)'  # no mask update in between: those cost the same on both sides


def bare(program) -> float:
  """Returns CPU seconds a step of the loop that only steps."""
  ts, key = program.create(), np.asarray(jax.random.key_data(jax.random.key(0)))
  for count in range(_WARM + _STEPS):
    if count == _WARM:
      jax.block_until_ready(ts[:3])
      started = time.process_time()
    batch = jax.device_put(program.task.batch(count))
    ts, _, _ = program.step(ts, batch, key, np.int32(count))
  jax.block_until_ready(ts[:3])
  return (time.process_time() - started) / _STEPS


def full(program) -> float:
  """Returns CPU seconds a step of the run loop with everything on."""
  marks = {}

  def advance(step):
    if step in (_WARM, _WARM + _STEPS):
      marks[step] = time.process_time()

  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder)
    with (
      jsp.CheckpointStore(workdir / 'checkpoints', program.transform, keep=3) as store,
      preemption.Watch() as watch,
      pulse.Pulse(workdir / 'hosts', 0) as beat,
    ):
      loop.Loop(
        program,
        seed=0,
        store=store,
        open_metrics=lambda after: metrics.Metrics(workdir, after=after, tensorboard=True),
        settings=loop.Settings(checkpoint_every=100, log_every=10),
        watch=watch,
        pulse=beat,
        event=lambda name, **facts: None,
        advance=advance,
      ).run()
  return (marks[_WARM + _STEPS] - marks[_WARM]) / _STEPS


def main():
  """Prints a line a round and the ratio of the medians."""
  config = language.get_config('bench')
  # The last step is saved and waited for; it lies behind the second mark.
  task = language.build(config)._replace(steps=_WARM + _STEPS + 1)
  transform = jsp.at(task.weights, jsp.parse(_TRANSFORM))
  program = loop.program(task, transform, loop.make_mesh({'data': -1, 'model': 1}))
  size = sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(program.like[:3]))
  print(f'state {size / 1e6:.1f} MB')
  times = {bare: [], full: []}
  for number in range(_ROUNDS):
    for side, found in times.items():
      found.append(side(program))
    print(f'round {number}: bare {times[bare][-1]:.4f}, full {times[full][-1]:.4f} CPU s a step')
  ratio = statistics.median(times[bare]) / statistics.median(times[full])
  print(f'steps a CPU second, full over bare: {ratio:.3f}')


if __name__ == '__main__':
  main()
