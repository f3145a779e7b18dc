"""What an experiment hands to a launcher: a model, its data and its figures, as pure functions.

An experiment is a file of this folder with `get_config(arg)`, a frozen dataclass, and
`build(config)`, a `Task`. Nothing in a task depends on anything but the config: a batch is a
function of its step, so the position in the data is the step, whatever the number of processes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax


class Task(NamedTuple):
  """A model to train or only to compress, with its data and its measure.

  Attributes:
    init: `() -> params`, fresh or pretrained effective weights; traceable, so that
      `jax.eval_shape(task.init)` allocates nothing where weights are drawn.
    loss: `(params, batch, key) -> (loss, {name: scalar})`; jitted. `key` is a typed key of its
      own for every step.
    batch: `step -> tree of numpy arrays`, the whole batch of step 0, 1, ...; leading axis
      `batch_size`, the same shapes at every step.
    tx: optimizer of the latents.
    steps: optimizer steps; 0 compresses without training.
    evaluate: `params -> {name: float}` on held-out data; params are arrays or formats. Always has
      `accuracy`, a fraction in [0, 1] that is better when higher.
    apply: `(params, inputs) -> outputs`, for axes, FLOPs and dispatch.
    inputs: example inputs of `apply`, leading axis = examples.
    weights: pattern of the weights compressed by a transform that does not say.
    specs: `params -> tree of PartitionSpec` over mesh axes `data` and `model`, for meshes with a
      `model` axis; None replicates every weight.
    epoch: steps in which the data is seen once, for transforms that look once an epoch; None where
      a run sees less than all of it.
    facts: what the data and the model were: sizes, digests, versions; JSON values.
    about: a sentence for the report.
  """

  init: Callable[[], Any]
  loss: Callable[[Any, Any, Any], tuple[Any, Mapping[str, Any]]]
  batch: Callable[[int], Any]
  tx: optax.GradientTransformation
  steps: int
  evaluate: Callable[[Any], Mapping[str, float]]
  apply: Callable[[Any, Any], Any]
  inputs: Any
  weights: str = '(.*/)?kernel'
  specs: Callable[[Any], Any] | None = None
  epoch: int | None = None
  facts: Mapping[str, Any] = {}
  about: str = ''
