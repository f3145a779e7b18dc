"""What a transform asks to see before it compresses: statistics of inputs, and gradients.

One-shot methods (Wanda, SparseGPT, GPTQ) and criteria at initialization (SNIP, GraSP, SynFlow,
Fisher) judge a weight by data. A run shows them its first training batches; held-out data are
never touched. `Spec.needs` says what.
"""

from typing import Any

import jax

import jaxsparse as jsp


def gathered(task: Any, transform: jsp.Transform, *, batches: int) -> dict[str, Any]:
  """Returns what `transform.init` needs besides the weights, of a task's fresh or given weights.

  Statistics are those of the dense model, all layers at once; `jsp.one_shot` takes them layer by
  layer, in a notebook.

  Args:
    task: an experiment's `Task`.
    transform: any transform.
    batches: how many of the first training batches are looked at.

  Raises:
    ValueError: the transform's parts need gradients of two kinds; or, from what is computed, a
      weight or a statistic is not finite.
  """
  kinds = sorted(transform.spec.needs - {'stats'})
  if len(kinds) > 1:
    raise ValueError(
      f'{jsp.spell(transform)}: its parts need gradients of different kinds, '
      f'{" and ".join(kinds)}; init takes one.'
    )
  if not transform.spec.needs:
    return {}
  params, found = task.init(), {}
  # What is random in a loss is the same for every batch: a run must repeat itself.
  loss = lambda p, batch: task.loss(p, batch, jax.random.key(0))[0]
  data = [(task.batch(step),) for step in range(batches)]
  if 'stats' in transform.spec.needs:
    found['stats'] = jsp.calibrate(loss, params, data, jsp.gram)
  if kinds == ['flow_gradient']:
    found['grads'] = jsp.criteria.flow_gradient(task.apply, params, task.inputs)
  elif kinds == ['hessian_gradient']:
    found['grads'] = jsp.criteria.hessian_gradient(loss, params, *data[0])
  elif kinds:
    found['grads'] = getattr(jsp.criteria, kinds[0])(loss, params, data)
  return found
