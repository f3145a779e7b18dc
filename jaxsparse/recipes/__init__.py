"""Where the workshops meet: the spelled form, and choices between them."""

from jaxsparse.recipes.mixed_precision import Allocation
from jaxsparse.recipes.mixed_precision import Choice
from jaxsparse.recipes.mixed_precision import allocate
from jaxsparse.recipes.mixed_precision import pareto_front
from jaxsparse.recipes.mixed_precision import scheme_costs
from jaxsparse.recipes.spelled import parse
from jaxsparse.recipes.spelled import words

__all__ = ['Allocation', 'Choice', 'allocate', 'pareto_front', 'parse', 'scheme_costs', 'words']
