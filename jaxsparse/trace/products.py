"""Products of activations with a weight that is stored as a format.

The program addresses the weight by the axes that transposes and slices gave it; the format is in
the weight's own. Each rule translates, multiplies by the stored form and puts the result's axes
where the program expects them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats


def weight_on_the_right(contraction: Any, w: formats.Format) -> tuple[tuple, tuple[int, ...]]:
  """Dimension numbers with the weight second, in the format's axes; and axes to broadcast `x` by.

  A batch axis of the format that the product leaves free (experts that share one input) becomes a
  batch axis of `x` too, in front.

  Args:
    contraction: a dot whose operand's axes were only moved and sliced.
    w: the format.

  Returns:
    `(dimension numbers, batch axes of w that x has to be given)`.
  """
  places = contraction.origin.positions
  contracted, batched = contraction.params['dimension_numbers']
  own, other = contraction.operand, contraction.input
  here = lambda dims: tuple(places[a] for a in dims)
  used = {*here(contracted[own]), *here(batched[own])}
  shared = tuple(a for a in w.layout.batch if a not in used)
  there = lambda dims: tuple(a + len(shared) for a in dims)
  numbers = ((there(contracted[other]), here(contracted[own])),
             ((*there(batched[other]), *range(len(shared))), (*here(batched[own]), *shared)))
  return numbers, shared


def _dot(contraction, x, w):
  places = contraction.origin.positions
  numbers, shared = weight_on_the_right(contraction, w)
  contracted, batched = contraction.params['dimension_numbers']
  own, other = contraction.operand, contraction.input
  free = [a for a in range(x.ndim) if a not in (*contracted[other], *batched[other])]
  x = jnp.broadcast_to(x, (*(w.shape[a] for a in shared), *x.shape))
  out = formats.dot(x, w, numbers, precision=contraction.params['precision'],
                    preferred_element_type=contraction.params['preferred_element_type'])
  # formats.dot gives batch axes, then the free axes of x, then those of w, ascending.
  taken = {*numbers[0][1], *numbers[1][1]}
  have = [*(('w', a) for a in numbers[1][1]), *(('x', a) for a in free),
          *(('w', a) for a in range(w.ndim) if a not in taken)]
  of_w = [('w', p) for a, p in enumerate(places) if a not in (*contracted[own], *batched[own])]
  of_x = [('x', a) for a in free]
  batch = [('w', places[a]) for a in batched[own]]
  want = [*batch, *(of_w + of_x if own == 0 else of_x + of_w)]
  return out if want == have else out.transpose([have.index(label) for label in want])


def grouped(contraction: Any, w: formats.Format) -> bool:
  """Whether a ragged product is that of rows sorted by group with a stack `[G, K, N]` of matrices.

  Args:
    contraction: a ragged product with the format.
    w: the format, as the product sees its axes.
  """
  numbers = contraction.params['ragged_dot_dimension_numbers']
  (contracted, _), batch = numbers.dot_dimension_numbers
  roles = w.layout.axes
  return (w.ndim == 3 and contraction.origin.positions == (0, 1, 2) and roles == ((1,), (2,))
          and tuple(contracted) == (1,) and tuple(map(tuple, batch)) == ((), ())
          and tuple(numbers.dot_dimension_numbers[0][1]) == (1,)
          and tuple(numbers.lhs_ragged_dimensions) == (0,)
          and tuple(numbers.rhs_group_dimensions) == (0,)
          and contraction.params.get('group_offset') is None)


def _grouped(contraction, x, w):
  dtype = contraction.params['preferred_element_type'] or jnp.result_type(x, contraction.dtype)
  return formats.grouped_dot(x, w, contraction.operands[2]).astype(dtype)


_CONV = ('window_strides', 'padding', 'lhs_dilation', 'rhs_dilation', 'feature_group_count',
         'batch_group_count', 'precision', 'preferred_element_type')


def _conv(contraction, x, w):
  places = contraction.origin.positions
  spec = contraction.params['dimension_numbers']
  spec = spec._replace(rhs_spec=tuple(places[a] for a in spec.rhs_spec))
  params = {k: contraction.params[k] for k in _CONV}
  return formats.convolve(x, w.astype(x.dtype), dimension_numbers=spec, **params)


def _take(contraction, x, w):
  rows = w.shape[0]
  if contraction.primitive.name == 'dynamic_slice':
    row = jnp.clip(x.astype(jnp.int32), 0, rows - 1)
    return formats.take(w, row[None]).astype(contraction.dtype)
  ids = x[..., 0].astype(jnp.int32)   # a byte cannot hold the bound it is compared with
  out = formats.take(w, jnp.clip(ids, 0, rows - 1)).astype(contraction.dtype)
  if not contraction.params['dimension_numbers'].collapsed_slice_dims:
    return out[..., None, :]
  fill = contraction.params['mode'] == jax.lax.GatherScatterMode.FILL_OR_DROP
  if not fill:
    return out
  value = contraction.params['fill_value']
  if value is None:
    value = jnp.nan if jnp.issubdtype(out.dtype, jnp.inexact) else jnp.iinfo(out.dtype).min
  inside = (ids >= 0) & (ids < rows)
  return jnp.where(inside.reshape(*ids.shape, *(1,) * (w.ndim - 1)), out, value)


# By primitive: `(contraction, x, format) -> result`.
RULES = {'dot_general': _dot, 'conv_general_dilated': _conv, 'gather': _take,
         'dynamic_slice': _take, 'ragged_dot': _grouped, 'ragged_dot_general': _grouped}
