"""Products with codes in groups of rows, each with its scale, as a Pallas kernel for TPUs.

A tile of codes is converted in VMEM; each group's part of the sum is multiplied by the group's
scale, so the decoded weight is never written. The grid is (rows, outputs, codes' rows), the last
one summed over.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_MOST_ROWS = 256
_MOST_OUTPUTS = 512
_MOST_SUMMED = 2048
_LANES = 128
_VMEM_BYTES = 48 * 2**20


def forward(x: jax.Array, codes: jax.Array, scale: jax.Array, *,
            interpret: bool = False) -> jax.Array:
  """`x @ (codes * scale)`.

  Args:
    x: `[M, K]`, floating.
    codes: int8 or int4 `[K, N]`.
    scale: floating `[G, N]`.
    interpret: runs without the hardware.

  Returns:
    `[M, N]` of the dtype of `x`.
  """
  (m, k), n, groups = x.shape, codes.shape[1], scale.shape[0]
  group = k // groups
  # Whole groups in a step, and a slice of x whose lanes are whole.
  each = _largest(groups, lambda g: g * group <= max(_MOST_SUMMED, group)
                  and (g == groups or not g * group % _LANES))
  tk = each * group
  tm = min(_MOST_ROWS, m)   # all rows may be a block, however few
  lanes = -(-n // _LANES)
  tn = _LANES * _largest(lanes, lambda g: g * _LANES <= _MOST_OUTPUTS)
  x = jnp.pad(x, ((0, -m % tm), (0, 0)))
  codes, scale = (jnp.pad(a, ((0, 0), (0, -n % _LANES))) for a in (codes, scale))
  steps, wide = groups // each, codes.shape[1]
  # One group of scales a step in front, so that a block holds whole axes.
  scale = scale.astype(jnp.float32).reshape(steps, each, wide)
  out = pl.pallas_call(
      functools.partial(_kernel, group=group, each=each, steps=steps),
      out_shape=jax.ShapeDtypeStruct((x.shape[0], wide), x.dtype),
      grid=(x.shape[0] // tm, wide // tn, steps),
      in_specs=[pl.BlockSpec((tm, tk), lambda i, j, s: (i, s)),
                pl.BlockSpec((tk, tn), lambda i, j, s: (s, j)),
                pl.BlockSpec((1, each, tn), lambda i, j, s: (s, 0, j))],
      out_specs=pl.BlockSpec((tm, tn), lambda i, j, s: (i, j)),
      scratch_shapes=[pltpu.VMEM((tm, tn), jnp.float32)],
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'arbitrary'),
          vmem_limit_bytes=_VMEM_BYTES),
      cost_estimate=_cost(x, codes, scale, tm, tn),
      interpret=interpret, name='quantized_matmul')(x, codes, scale)
  return out[:m, :n]


def _kernel(x, codes, scale, out, total, *, group, each, steps):
  step = pl.program_id(2)

  @pl.when(step == 0)
  def _():
    total[...] = jnp.zeros_like(total)

  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  for g in range(each):
    own = slice(g * group, (g + 1) * group)
    # Eight bits at most are exact in bfloat16 and wider.
    values = codes[own, :].astype(jnp.float32).astype(x.dtype)
    part = jnp.dot(x[:, own], values, preferred_element_type=jnp.float32, precision=precision)
    total[...] += part * scale[0, g:g + 1, :]

  @pl.when(step == steps - 1)
  def _():
    out[...] = total[...].astype(out.dtype)


def _largest(count, fits):
  return max(g for g in range(1, count + 1) if count % g == 0 and (fits(g) or g == 1))


def _cost(x, codes, scale, tm, tn):
  """The product's operations; codes are read once for each tile of rows."""
  (m, k), n = x.shape, codes.shape[1]
  bits = 4 if codes.dtype == jnp.int4 else 8
  read = (k * n * bits // 8 + scale.nbytes) * (m // tm) + x.nbytes * (n // tn)
  return pl.CostEstimate(flops=2 * m * k * n, transcendentals=0,
                         bytes_accessed=read + m * n * x.dtype.itemsize)
