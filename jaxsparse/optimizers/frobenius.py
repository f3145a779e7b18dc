"""Weight decay of the product of two factors instead of the factors: Frobenius decay.

Khodak et al. (arXiv:2105.01029), section 4; Wang et al., "Cuttlefish" (arXiv:2305.02538). Decay
pulls at `(lambda / 2) |u v|_F^2`, whose gradients are `lambda u (v v^T)` and `lambda (u^T u) v`:
products of the factors with Gram matrices of `rank` rows, never the weight itself.
"""

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import names
from jaxsparse.core import transform as transforms


def frobenius_decay(weight_decay: float, *, others: float | None = None
                    ) -> optax.GradientTransformation:
  """Adds the gradient of `(weight_decay / 2) |u v|_F^2` to the updates of `low_rank`'s factors.

  At the place of `optax.add_decayed_weights` in a chain, and in place of it: other arrays of rank 2
  and more decay as usual, vectors and scalars do not.

  Args:
    weight_decay: lambda.
    others: of weights that are not factored; None stands for `weight_decay`.

  Returns:
    An optax transformation whose `update` needs `params`, latents of any transform.

  Raises:
    ValueError: a decay is negative or not finite; in `update`, factors have a normalization between
      them (`low_rank(..., normalize=True)`), which excludes Frobenius decay, or one of two factors
      is masked.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'w': jsp.LowRank(jnp.array([[2.0]]), jnp.array([[3.0]])), 'b': jnp.ones(1)}
    >>> tx, zero = frobenius_decay(0.5), jax.tree.map(jnp.zeros_like, params)
    >>> updates, _ = tx.update(zero, tx.init(params), params)
    >>> updates['w'].u.item(), updates['w'].v.item(), updates['b'].item()
    (9.0, 6.0, 0.0)
  """
  others = weight_decay if others is None else others
  for name, value in (('weight_decay', weight_decay), ('others', others)):
    if not 0 <= value < float('inf'):
      raise ValueError(f'{name} must be at least 0 and finite, got {value!r}.')

  def update(updates, state, params=None):
    if params is None:
      raise ValueError('This transformation needs params: tx.update(updates, state, params).')
    added = jax.tree_util.tree_map_with_path(
        lambda path, x: _decay(path, x, weight_decay, others), params, is_leaf=_is_product)
    return jax.tree.map(lambda u, d: u + d.astype(u.dtype), updates, added), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _is_product(x) -> bool:
  return hasattr(type(x), '__product__')


def _decay(path, x, weight_decay, others):
  if not _is_product(x):
    plain = transforms.is_floating(x) and x.ndim >= 2
    return others * x if plain else jnp.zeros((), getattr(x, 'dtype', None))
  name = names.weight_name(path)
  if type(x).__product__ is None:
    raise ValueError(f'{name}: Frobenius decay and a normalization between the factors exclude '
                     'each other; use low_rank(normalize=False), or another decay.')
  u, v = (getattr(x, field) for field in type(x).__product__)
  if not (hasattr(u, 'shape') and hasattr(v, 'shape')):
    if hasattr(u, 'shape') or hasattr(v, 'shape'):
      raise ValueError(f'{name}: one of two factors is masked; Frobenius decay needs both.')
    return x
  if u.ndim != v.ndim or u.shape[-1] != v.shape[-2]:
    raise ValueError(f'{name}: factors of shapes {u.shape} and {v.shape} have full rank and are '
                     'stored in the weight\'s own shape; leave such a weight unfactored.')
  precise = lambda a, b: jnp.matmul(a, b, precision='highest')
  transposed = lambda a: jnp.swapaxes(a, -1, -2)
  products = {type(x).__product__[0]: precise(u, precise(v, transposed(v))),
              type(x).__product__[1]: precise(precise(transposed(u), u), v)}
  return x._replace(**{field: weight_decay * g for field, g in products.items()})
