"""Cuttlefish in real runs on digits: when it factors nothing, and what a switch does to loss."""

import dataclasses

import pytest

from experiments import vision
from experiments.benchmarks import cuttlefish

_SMALL = dataclasses.replace(vision.get_config('digits-mlp'), width=128, steps=440)


@pytest.mark.slow
def test_weights_near_their_start_stay_whole_without_normalization():
  """At a small rate nothing changes an unnormalized network's weights much: no rank pays."""
  config = dataclasses.replace(_SMALL, model='mlp', rate=0.01)
  run = cuttlefish.measure(vision, config, cuttlefish.CUTTLEFISH)
  assert (run.ranks, run.switch, run.capped) == ({}, None, False)   # settled, and rightly whole
  assert run.accuracy > 0.85
  assert run.compressed == 3 * 128 * (64 + 128)


@pytest.mark.slow
def test_a_normalized_network_shrinks_without_a_spike():
  config = dataclasses.replace(_SMALL, rate=0.2, weight_decay=5e-3, steps=880)
  run = cuttlefish.measure(vision, config, "cuttlefish(profile='none')")
  assert set(run.ranks) == {'hidden_1/kernel', 'hidden_2/kernel'}
  assert run.switch <= config.steps / 2
  assert run.compressed < 0.7 * (64 + 2 * 128) * 128
  assert run.accuracy > 0.93
  found = cuttlefish.claims({'identity()': [run], cuttlefish.CUTTLEFISH: [run]}, config.steps)
  assert found['loss within 100 steps of the switch, over before'][0] <= 1.05
