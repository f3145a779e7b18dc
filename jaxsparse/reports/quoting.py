"""Text from outside, made safe to look at and to open in a spreadsheet."""

import html
import math
import unicodedata
from typing import Any

# What a spreadsheet takes for a formula or a command at the start of a cell.
_FORMULA = ('=', '+', '-', '@', '\t', '\r', '\n')
_KEPT = {'\n', '\t'}


def visible(text: str) -> str:
  """Returns the text with what is invisible or reverses its neighbours written as an escape.

  Example:
    >>> visible('a\\u202eb\\x00')
    'a\\\\u202eb\\\\x00'
  """
  hidden = {'Cc', 'Cf', 'Cs', 'Co', 'Zl', 'Zp'}
  return ''.join(
    c if c in _KEPT or unicodedata.category(c) not in hidden else ascii(c)[1:-1] for c in text
  )


def escaped(text: str) -> str:
  """Returns the text as HTML, in an element or an attribute, all of it visible.

  Example:
    >>> escaped('<b>\\x00')
    '&lt;b&gt;\\\\x00'
  """
  return html.escape(visible(text))


def cell(value: Any) -> Any:
  """Returns a value of a CSV cell: numbers as they are, text that is no formula, None for NaN.

  Example:
    >>> cell('=1+1'), cell(-0.5), cell('-0.5'), cell(float('nan')), cell('nm(2, 4)')
    ("'=1+1", -0.5, '-0.5', None, 'nm(2, 4)')
  """
  if isinstance(value, float) and value - value != 0:
    return None
  if not isinstance(value, str):
    return value
  text = visible(value)
  # A spreadsheet skips blanks before it looks for a formula, and knows full-width signs.
  first = unicodedata.normalize('NFKC', text.lstrip())[:1]
  risky = first in _FORMULA[:4] if first else False
  return "'" + text if (risky or text[:1] in _FORMULA) and not _is_number(text) else text


def _is_number(text):
  try:
    plain = text.isascii() and text == text.strip() and '_' not in text
    return plain and math.isfinite(float(text))
  except ValueError:
    return False
