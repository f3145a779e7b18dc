"""Cuttlefish in a real run on digits that rightly ends with whole weights."""

import dataclasses

import pytest

from experiments import vision
from experiments.benchmarks import cuttlefish


@pytest.mark.slow
def test_weights_near_their_start_stay_whole_without_normalization():
  """At a small rate nothing changes an unnormalized network's weights much: no rank pays."""
  config = dataclasses.replace(vision.get_config('digits-mlp'), model='mlp', width=128, steps=440,
                               rate=0.01)  # fmt: skip
  run = cuttlefish.measure(vision, config, cuttlefish.CUTTLEFISH)
  assert (run.ranks, run.switch, run.capped) == ({}, None, False)   # settled, and rightly whole
  assert run.accuracy > 0.85
  assert run.compressed == 3 * 128 * (64 + 128)
