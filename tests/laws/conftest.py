"""Each word's guessed form is under the laws in `make test`; its further forms are slow tests.

The laws whose programs take longest to compile are told of every few words there, of all in
`make test-all`.
"""

import re

import pytest

from tests.laws import cases

_FIRST = [*dict.fromkeys(cases.guess(factory) for factory in cases.FACTORIES)]
_EVERY = {'one': 1, 'one_row': 2, '7_projection': 1, '9_resume': 2, '10_sharding': 3}


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
  """Marks the other tests; parameterized ones end with the number of their form."""
  for item in items:
    form = re.search(r'laws_test\.py::LawsTest::test_([a-z0-9_]*[a-z_])(\d+)$', item.nodeid)
    if form and form[1] in _EVERY:
      text = cases.SPELLED[int(form[2])]
      if text not in _FIRST or _FIRST.index(text) % _EVERY[form[1]]:
        item.add_marker(pytest.mark.slow)
