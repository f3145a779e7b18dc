"""LoRA+: a larger learning rate for the factor that starts at zero.

Hayou et al., "LoRA+" (arXiv:2402.12354): with one rate for both, features are not learned
efficiently in wide models; `b` should learn some sixteen times as fast as `a`.
"""

from typing import Any, Callable

import optax

from jaxsparse.core import names


def lora_plus(make_tx: Callable[[Any], optax.GradientTransformation], rate: Any, *,
              ratio: float = 16.0) -> optax.GradientTransformation:
  """An optimizer of latents in which every adapter's `b` has `ratio` times the learning rate.

  Args:
    make_tx: an optimizer of a learning rate, such as `optax.adamw`.
    rate: of everything but `b`: a number, or an optax schedule.
    ratio: 16 in the paper, which sets it near the width over the rank for fine-tuning.

  Returns:
    An optax transformation.

  Raises:
    ValueError: `ratio` is not positive, or, in `init`, there is no adapter among the params.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params, _ = jsp.lora(1).init({'kernel': jnp.ones((2, 2))})
    >>> tx = lora_plus(optax.sgd, 0.1, ratio=10.0)
    >>> grads = {'kernel': jsp.Lora(jnp.ones((2, 1)), jnp.ones((1, 2)))}
    >>> updates, _ = tx.update(grads, tx.init(params), params)
    >>> float(updates['kernel'].a[0, 0].round(3)), float(updates['kernel'].b[0, 0].round(3))
    (-0.10000000149011612, -1.0)
  """
  if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio > 0:
    raise ValueError(f'ratio must be a positive number, got {ratio!r}.')
  faster = (lambda count: ratio * rate(count)) if callable(rate) else ratio * rate

  def label(params):
    leaves, rebuild = names.named_leaves(params)
    # By key: a model's own parameter may be called b.
    labels = ['b' if leaf.key.endswith(':b') else 'others' for leaf in leaves]
    if labels and 'b' not in labels:   # optax also asks for the state of a tree without leaves
      raise ValueError('lora_plus found no adapter: expected the latents of lora() or dora().')
    return rebuild(labels)

  return optax.partition({'b': make_tx(faster), 'others': make_tx(rate)}, label)
