"""How much faster a layer gets when its weight is factored, measured or compiled.

Cuttlefish's profiling (Wang et al., arXiv:2305.02538, section 3.3): one forward and backward pass
of the layer whole, and at a quarter of its rank. Layers of one shape are measured once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxsparse.core import names as names_of
from jaxsparse.formats import low_rank
from jaxsparse.numerics import axes
from jaxsparse.trace import hooks
from jaxsparse.trace import timing


def factor_speedups(fn: Callable, params: Any, *args, ratio: float = 0.25, by: str = 'time',
                    names: Sequence[str] | None = None, until: float | None = None,
                    **kwargs) -> dict[str, float]:
  """Time of a layer's products over their time by factors of a lower rank, backward pass included.

  Only the shapes of params and arguments count; the products are run on noise. On CPUs time is that
  of the process on all its cores, so other processes disturb little; elsewhere it is the clock's.

  Args:
    fn: `fn(params, *args, **kwargs)`, the model or its loss, on a batch as training has it.
    params: weights, arrays or `jax.ShapeDtypeStruct`s.
    *args: of `fn`.
    ratio: rank over full rank, at least 1.
    by: 'time', or 'cost', which compares the operations of the compiled programs and runs nothing.
    names: of the weights, in the order to look at them; None takes all, in the order of use.
    until: stops after the first that is at least so many times faster.
    **kwargs: of `fn`.

  Returns:
    `{name: times faster}`. A weight that no product or convolution uses, or only one that factors
    do not serve (grouped convolutions, reshaped weights), counts 1.

  Raises:
    ValueError: `by` is another word, `ratio` is no share, or a name is not that of a weight.

  Example:
    >>> import jax.numpy as jnp
    >>> w = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    >>> x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    >>> found = factor_speedups(lambda p, x: x @ p['w'], {'w': w}, x, by='cost')
    >>> 1.5 < found['w'] < 2.5
    True
  """
  if by not in ('time', 'cost'):
    raise ValueError(f"by must be 'time' or 'cost', got {by!r}.")
  if not 0 < ratio <= 1:
    raise ValueError(f'ratio must be a share of the full rank in (0, 1], got {ratio!r}.')
  uses = _uses(fn, params, args, kwargs)
  there = [leaf.name for leaf in names_of.named_leaves(params)[0]]
  found, known = {}, {}
  for name in [*uses] if names is None else names:
    if name not in there:
      raise names_of.no_match(name, there)
    faster = 1.0
    for contraction, x in uses.get(name, ())[:1]:
      shape = (contraction.kind, x.shape, str(x.dtype), contraction.operand_shape,
               contraction.axes, contraction.origin.shape, str(contraction.params))
      if shape not in known:
        known[shape] = _faster(contraction, x, ratio, by)
      faster = known[shape]
    found[name] = faster
    if until is not None and faster >= until:
      break
  return found


def _uses(fn, params, args, kwargs):
  """`{name: [(contraction, abstract x), ...]}` in the order of use."""
  found = {}

  def note(contraction, x, w):
    found.setdefault(contraction.name, []).append(
        (contraction, jax.ShapeDtypeStruct(x.shape, x.dtype)))
    return contraction.compute(x, w), None

  jax.eval_shape(hooks.watching(fn, note, None), params, *args, **kwargs)
  return found


def _faster(contraction, x, ratio, by) -> float:
  layout = _layout(contraction)
  if layout is None or contraction.kind not in ('dot', 'conv'):
    return 1.0
  *batch, rows, outputs = layout.matrix_shape
  rank = max(1, round(ratio * min(rows, outputs)))
  dtype = contraction.dtype
  abstract = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
  if not contraction.takes(low_rank.LowRankArray(
      abstract(*batch, rows, rank), abstract(*batch, rank, outputs), layout)):
    return 1.0

  def passes(product):
    def run(x, *weights):
      y, pull = jax.vjp(product, x, *weights)
      return pull(y)
    return jax.jit(run)

  whole = passes(contraction.compute)
  thin = passes(lambda x, u, v: contraction.compute(x, low_rank.LowRankArray(u, v, layout)))
  inputs = [(x, abstract(*contraction.operand_shape)),
            (x, abstract(*batch, rows, rank), abstract(*batch, rank, outputs))]
  if by == 'cost':
    cost = [f.lower(*given).compile().cost_analysis()['flops']
            for f, given in zip((whole, thin), inputs)]
    return float(cost[0] / cost[1])
  noise = [[timing.noise(i, a) for i, a in enumerate(given)] for given in inputs]
  return _times(whole, thin, *noise)


def _layout(contraction):
  """The layout of what the product sees of the weight: less the axes that scans took off."""
  if contraction.axes is None:
    return None
  source = contraction.origin
  layout = axes.Layout(source.shape, contraction.dtype, contraction.axes)
  gone = [n for n in range(len(source.shape)) if n not in source.kept]
  if gone != list(range(len(gone))) or not {*gone} <= {*layout.batch}:
    return None
  for _ in gone:
    layout = layout.drop_leading()
  return layout


def _times(whole, thin, whole_inputs, thin_inputs) -> float:
  """How many times faster the thin program is."""
  return 1 / timing.interleaved({'whole': lambda: whole(*whole_inputs),
                                 'thin': lambda: thin(*thin_inputs)})['thin'][1]
