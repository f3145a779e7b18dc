"""Knowledge distillation: a compressed student learns what a dense teacher says.

Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531); hidden states as
in Romero et al., "FitNets" (arXiv:1412.6550), without the regressor, as a compressed model has the
widths of its teacher. Logits are z (student) and v (teacher), `[..., classes]`; T is a temperature.

The teacher's weights are an argument of the loss, not of the factory: closed over they would be
compiled into the step as constants.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax


def soft_targets(student: jax.Array, teacher: jax.Array, *, temperature: float) -> jax.Array:
  """`T^2 KL(softmax(v / T) || softmax(z / T))` of each example, in float32.

  Hinton's cross-entropy less the teacher's entropy, so that it is zero where they agree; the
  gradient is the same. `T^2` keeps its size as T changes.

  Args:
    student: logits z, `[..., classes]`.
    teacher: logits v, the same shape; no gradient flows into them.
    temperature: T.

  Returns:
    `[...]`.

  Raises:
    ValueError: the shapes differ.

  Example:
    >>> soft_targets(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 2.0]]), temperature=3.0).tolist()
    [0.0]
  """
  if student.shape != teacher.shape:
    raise ValueError(f'The logits of student and teacher differ: found shapes {student.shape} and '
                     f'{teacher.shape}, expected one.')
  z, v = (x.astype(jnp.float32) / temperature for x in (student, jax.lax.stop_gradient(teacher)))
  said, wanted = jax.nn.log_softmax(z), jax.nn.log_softmax(v)
  return temperature**2 * (jnp.exp(wanted) * (wanted - said)).sum(-1)


def distillation(apply_fn: Callable, *, temperature: float = 4.0, alpha: float = 0.9,
                 teacher_fn: Callable | None = None) -> Callable:
  """A loss that mixes a teacher's soft targets with the labels.

  `alpha T^2 KL + (1 - alpha) cross-entropy`, the mean over examples.

  Args:
    apply_fn: `(params, inputs) -> logits [..., classes]` of the student.
    temperature: T, above 0.
    alpha: weight of the soft targets, in [0, 1].
    teacher_fn: of the teacher, where it is another model; `apply_fn` when None.

  Returns:
    `loss(params, teacher_params, inputs, labels)` with integer labels `[...]`; as `train_step`
    takes it: `step(ts, teacher_params, inputs, labels)`.

  Raises:
    ValueError: the temperature or alpha is out of range.

  Example:
    >>> loss = distillation(lambda params, x: x @ params['w'], alpha=1.0)
    >>> teacher, x, labels = {'w': jnp.eye(2)}, jnp.ones((3, 2)), jnp.zeros(3, int)
    >>> float(loss(teacher, teacher, x, labels))
    0.0
  """
  if isinstance(temperature, bool) or not 0 < temperature < float('inf'):
    raise ValueError(f'temperature is a finite number above 0, got {temperature!r}.')
  if isinstance(alpha, bool) or not 0 <= alpha <= 1:
    raise ValueError(f'alpha is a weight in [0, 1], got {alpha!r}.')
  teacher_fn = teacher_fn or apply_fn

  def loss(params: Any, teacher_params: Any, inputs: Any, labels: jax.Array) -> jax.Array:
    student = apply_fn(params, inputs)
    soft = soft_targets(student, teacher_fn(teacher_params, inputs), temperature=temperature)
    hard = optax.softmax_cross_entropy_with_integer_labels(student.astype(jnp.float32), labels)
    return (alpha * soft + (1 - alpha) * hard).mean()

  return loss


def hidden_distillation(hidden_fn: Callable, *, teacher_fn: Callable | None = None) -> Callable:
  """A loss that pulls hidden states to the teacher's: the mean over states of the mean square.

  Add it to another loss with a weight of your own.

  Args:
    hidden_fn: `(params, inputs) -> tree` of hidden states of the student.
    teacher_fn: `(teacher_params, inputs) ->` the same tree; `hidden_fn` when None.

  Returns:
    `loss(params, teacher_params, inputs)`.

  Raises:
    ValueError: (in the call) the states of student and teacher differ in structure or shape.

  Example:
    >>> loss = hidden_distillation(lambda params, x: [x @ params['w']])
    >>> float(loss({'w': jnp.eye(2)}, {'w': 3 * jnp.eye(2)}, jnp.ones((3, 2))))
    4.0
  """
  teacher_fn = teacher_fn or hidden_fn

  def loss(params: Any, teacher_params: Any, inputs: Any) -> jax.Array:
    student, teacher = hidden_fn(params, inputs), teacher_fn(teacher_params, inputs)
    shapes = [jax.tree.map(jnp.shape, states) for states in (student, teacher)]
    if shapes[0] != shapes[1]:
      raise ValueError(f'The hidden states of student and teacher differ: found shapes {shapes[0]} '
                       f'and {shapes[1]}, expected one.')
    square = lambda z, v: jnp.square(
        z.astype(jnp.float32) - jax.lax.stop_gradient(v).astype(jnp.float32)).mean()
    errors = jax.tree.leaves(jax.tree.map(square, student, teacher))
    return sum(errors) / len(errors)

  return loss
