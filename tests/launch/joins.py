"""A process that joins a pod as told and sums over it, step after step, until it is stopped."""

import argparse
import sys
import time

import jax
import jax.numpy as jnp

from launch import exits
from launch.hosts import distributed
from launch.hosts import preemption


def main():
  """Joins, steps, and leaves with the code a run would."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--mode')
  parser.add_argument('--coordinator')
  parser.add_argument('--process_count', type=int)
  parser.add_argument('--process_id', type=int)
  parser.add_argument('--start_seconds', type=int, default=60)
  given = vars(parser.parse_args())
  try:
    distributed.start(**given)
  except (ValueError, distributed.Unreachable) as error:
    print(error)
    sys.exit(exits.BAD_INPUT if isinstance(error, ValueError) else exits.PEER_LOST)
  try:
    code = _steps()
  except jax.errors.JaxRuntimeError as error:
    print(error)
    distributed.leave(exits.PEER_LOST if distributed.is_peer_loss(error) else exits.FAILED)
  distributed.finish(code)
  sys.exit(code)


def _steps():
  mesh = jax.make_mesh((jax.device_count(),), ('data',))
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  here = jax.jit(lambda: jnp.ones(jax.device_count()), out_shardings=place)()
  total = jax.jit(jnp.sum)
  with preemption.Watch() as watch:
    for step in range(1_000_000):
      total(here).block_until_ready()
      print(f'step {step}')
      if watch.reached(step):
        print(f'stopped at {step}')
        return exits.PREEMPTED
      time.sleep(0.05)
  return exits.DONE


if __name__ == '__main__':
  main()
