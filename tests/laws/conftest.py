"""Each word's guessed form is under every law in `make test`; its further forms are slow tests."""

import re

import pytest

from tests.laws import cases

_FIRST = {cases.guess(factory) for factory in cases.FACTORIES}


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
  """Marks the tests of further forms; parameterized tests end with the number of their form."""
  for item in items:
    form = re.search(
      r'laws_test\.py::LawsTest::test_(?:one|one_row|7\w+|9\w+|10\w+?)(\d+)$', item.nodeid
    )
    if form and cases.SPELLED[int(form[1])] not in _FIRST:
      item.add_marker(pytest.mark.slow)
