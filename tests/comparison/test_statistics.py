from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from idc_ray.comparison.statistics import paired_difference, spread


def test_the_interval_is_that_of_a_textbook() -> None:
    """Catches a normal quantile for Student's, and sd for the standard error: differences 1, 2, 3 by hand."""
    found = paired_difference({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    assert found is not None
    margin = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2), sd 1
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - margin, 2 + margin))
    assert not found.clear


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_interval_is_that_of_scipys_paired_test(count: int) -> None:
    """Catches wrong degrees of freedom, and an interval of unpaired samples."""
    random = np.random.default_rng(count)
    a, b = random.normal(30, 1, count), random.normal(30.2, 1, count)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_seeds_are_paired_by_number_not_by_place() -> None:
    """Catches a zip of two lists when one seed failed: the difference would be that of other seeds."""
    found = paired_difference({2: 5.0, 0: 3.0, 1: 4.0}, {0: 1.0, 2: 4.0, 9: 100.0})
    assert found is not None
    assert (found.count, found.mean) == (2, 1.5)


def test_one_seed_has_a_difference_without_an_interval() -> None:
    """Catches an interval of width 0, which would be called clear."""
    found = paired_difference({0: 2.0}, {0: 1.0})
    assert found is not None
    assert found.mean == 1 and math.isnan(found.low) and not found.clear
    assert paired_difference({0: 2.0}, {1: 1.0}) is None


def test_a_difference_is_clear_on_either_side_of_zero() -> None:
    """Catches a one-sided interval."""
    for sign in (1, -1):
        found = paired_difference({0: 1.0 * sign, 1: 1.01 * sign, 2: 0.99 * sign}, {0: 0.0, 1: 0.0, 2: 0.0})
        assert found is not None and found.clear


def test_spread_is_of_the_sample() -> None:
    """Catches n for n - 1, which makes the deviation of three seeds 1.2 times too small."""
    found = spread([1.0, 2.0, 3.0])
    assert found is not None
    assert (found.mean, found.deviation, found.count) == (2, pytest.approx(1), 3)
    one = spread([1.0])
    assert one is not None and math.isnan(one.deviation)
    assert spread([]) is None
