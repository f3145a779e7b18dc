"""The table of the conformance suite: every public transform, and the trees it is tried on.

Transforms are read off the rooms' TRANSFORMS lists, so a re-export is what puts a method under the
laws. Arguments without a default are guessed from their names; one that cannot be is a line in
`ARGUMENTS`.
"""

import inspect

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as jsp
from jaxsparse import lowrank
from jaxsparse import quantization
from jaxsparse import sharing
from jaxsparse.core import axes as core_axes
from jaxsparse.core import names
from jaxsparse.numerics import axes
from jaxsparse.sparsity import TRANSFORMS as PRUNING

FACTORIES = (*PRUNING, *quantization.TRANSFORMS, *lowrank.TRANSFORMS, *sharing.TRANSFORMS)

GUESSES = {'dtypes': "('int8', 'int4')", 'every': '1', 'end': '2',
           'sparsity': '0.5', 'n': '2', 'm': '4', 'dtype': "'int8'", 'rank': '4', 'bits': '4',
           'k': '16', 'group': '5', 'criterion': "'random'",
           'schedule': 'linear(0.5, end=2, every=1)'}

# Further spelled forms of a word, beside the guessed one.
ARGUMENTS = {
    'magnitude': ['magnitude(linear(0.75, end=2, every=1))', 'magnitude(0.5, pattern=block(2, 1))',
                  'magnitude(linear(0.5, end=2, every=1), pattern=n_m(2, 4))',
                  'magnitude(0.5, pattern=channel())', 'magnitude(0.5, distribution=pooled)',
                  'magnitude(0.5, distribution=erk)',
                  'magnitude(0.5, distribution=pooled_normalized)',
                  'magnitude(0.5, pattern=transposable(1, 2))',
                  'magnitude(0.5, pattern=vector(4))',
                  'magnitude(linear(0.5, end=2, every=1), pattern=balanced_blocks(2, 1))'],
    'ac_dc': ['ac_dc(0.5, start=0, every=1, end=3)'],
    'l0': ["l0(unit='output', end=0)"],
    'prune': ["prune('snip', schedule=at_step(0, 0.5), distribution=pooled)"],
    'rigl': ['rigl(0.5, every=1, end=10)',
             'rigl(0.5, every=1, end=10, pattern=balanced_blocks(2, 2, pad=True))'],
    'straight_through': ['straight_through(cosine(0.5, end=3, every=2), every=4)'],
    'top_kast': ['top_kast(0.75, backward=0.5, every=1)'],
    'fake_quantize': ["fake_quantize('int4', granularity='group', group=3)",
                      "fake_quantize('int8', granularity='tensor')",
                      "fake_quantize('uint4', group=(4, 3))",
                      "fake_quantize('nvfp4')",
                      "fake_quantize('int4', rounding='stochastic')"],
    'gradual_quantize': ["gradual_quantize(('int8', 'uint4'), every=1, group=3)"],
    'lsq': ["lsq(2, granularity='channel')"],
    'adaround': ["adaround('uint4', group=3, steps=20)"],
    'autoround': ["autoround('uint4', group=3, steps=20)"],
    'awq': ["awq('uint4', group=3, scale='mse')"],
    'gptq': ["gptq('uint4', group=5, act_order=False)", "gptq('mxfp4')"],
    'quantize': ["quantize('mxfp8')", "quantize('uint3', scale='mse')"],
    'optimal_brain': ['optimal_brain(pattern=n_m(2, 4))'],
    'sparsegpt': ['sparsegpt(0.75, block=4)', 'sparsegpt(pattern=n_m(2, 4))'],
    'wanda': ['wanda(pattern=n_m(1, 4))', 'wanda(0.5, pattern=block(2, 1))'],
    'parq': ["parq('uint4', group=3, end=3, start=1)", "parq('nf4', end=2)"],
    'nf4': ['nf4(group=4, double_quantize=True)'],
    'low_rank': ['low_rank(0.5)', 'low_rank(2, normalize=True)'],
    'lora': ['lora(4, base=nf4(group=4))', 'lora(4, base=nm(2, 4), scaling=rslora)',
             'lora(2, start=pissa())', "lora(2, base=quantize('int4'), start=loftq(2))"],
    'dora': ['dora(2, base=nf4(group=4), start=pissa())'],
}


def guess(factory) -> str:
  """The spelled call of a factory, arguments without default guessed from their names."""
  needed = [p for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
  arguments = [f'{p.name}={GUESSES[p.name]}' if p.kind is p.KEYWORD_ONLY else GUESSES[p.name]
               for p in needed]
  return f'{factory.__name__}({", ".join(arguments)})'


def spelled() -> list[str]:
  """Every public transform, spelled."""
  return [text for factory in FACTORIES
          for text in [guess(factory), *ARGUMENTS.get(factory.__name__, [])]]


SPELLED = spelled()

# name -> shape; rows divide by four, so that 2:4 fits.
TREES = {
    'matrix': {'dense/kernel': (8, 12), 'dense/bias': (12,)},
    'one column': {'dense/kernel': (4, 1)},
    'experts': {'experts/kernel': (3, 8, 4), 'head/kernel': (8, 4)},
    'convolution': {'conv/kernel': (2, 2, 4, 6), 'conv/bias': (6,)},
    'attention': {'query/kernel': (8, 2, 4), 'out/kernel': (2, 4, 8), 'scale': (8,)},
    'nothing to select': {'dense/bias': (12,), 'steps': ()},
}
FILLS = ('normal', 'zeros', 'ties', 'constant')


def make_tree(shapes, fill: str, dtype: str, seed: int = 0):
  """A nested dict of arrays; `steps` is an integer."""
  rng = np.random.default_rng(seed)
  tree: dict = {}
  for name, shape in shapes.items():
    value = {'normal': rng.normal(size=shape), 'zeros': np.zeros(shape), 'constant': np.ones(shape),
             'ties': rng.integers(-2, 3, size=shape) / 2}[fill]
    *path, last = name.split('/')
    node = tree
    for part in path:
      node = node.setdefault(part, {})
    node[last] = jnp.asarray(value, 'int32' if name == 'steps' else dtype)
  return tree


@st.composite
def trees(draw, kinds=tuple(TREES)):
  """A tree of any kind, fill and dtype."""
  shapes = TREES[draw(st.sampled_from(kinds))]
  return make_tree(shapes, draw(st.sampled_from(FILLS)),
                   draw(st.sampled_from(['float32', 'bfloat16'])), draw(st.integers(0, 3)))


def statistics(params, seed: int = 0):
  """{name: Gram of random inputs}, by the roles that `init` finds; one input of each was dead."""
  rng, found = np.random.default_rng(seed), {}
  for leaf in names.named_leaves(params)[0]:
    if leaf.is_weight:
      shape = leaf.value.shape
      layout = axes.Layout(shape, 'float32', core_axes.known_axes(leaf.name, shape))
      *batch, rows, _ = layout.matrix_shape
      x = rng.normal(size=(*batch, 6, rows))
      x[..., -1] = 0
      found[leaf.name] = jnp.asarray(np.swapaxes(x, -1, -2) @ x, jnp.float32)
  return found


def init_of(transform: jsp.Transform):
  """`transform.init` with statistics of the weights, for methods that ask for them."""
  return lambda params: transform.init(params, stats=statistics(params))


def effective(transform: jsp.Transform, params):
  """What the model would see right after init."""
  return jsp.densify(transform.apply(*init_of(transform)(params)))


def gradients_like(tree, seed: int = 0):
  """A tree of random gradients."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)
