"""The command that runs every benchmark of speed: what it runs, keeps and refuses."""

import importlib.util

import numpy as np
import pytest

from experiments.benchmarks import __main__ as suite
from experiments.benchmarks import grouped_products


def test_every_part_is_a_benchmark():
  for module, *_ in suite.PARTS.values():
    assert importlib.util.find_spec(f'experiments.benchmarks.{module}'), module


def test_a_table_is_shown_and_kept_and_a_failure_named(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(suite, 'PARTS', {'bad': ['nothing']})
  assert suite.main(['bad', f'--to={tmp_path / "tables"}']) == 1
  assert 'failed: bad' in capfd.readouterr().err
  assert (tmp_path / 'tables' / 'bad.txt').read_text() == ''
  assert suite.main(['ugly']) == 2
  assert 'unknown: ugly; parts are bad' in capfd.readouterr().err


@pytest.mark.parametrize('rows', [64, 1000, 4096])
def test_the_busiest_expert_has_its_share(rows):
  sizes = grouped_products.group_sizes(rows)
  assert sizes.sum() == rows and len(sizes) == 8
  np.testing.assert_allclose(sizes.max(), 1.7 * rows / 8, atol=0.51)
