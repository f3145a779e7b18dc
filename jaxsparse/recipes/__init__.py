"""Where the workshops meet: the spelled form, and named chains."""

from jaxsparse.recipes.spelled import parse
from jaxsparse.recipes.spelled import words

__all__ = ['parse', 'words']
