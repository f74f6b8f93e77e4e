from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from idc_ray.comparison.statistics import NUMBERS, summarise


def test_the_interval_is_that_of_a_textbook() -> None:
    """Catches a normal quantile for Student's, and sd for the standard error: differences 1, 2, 3 by hand."""
    found = summarise({0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0})
    margin = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2), sd 1
    assert tuple(found) == NUMBERS
    assert tuple(found.values()) == pytest.approx((22, 11, 2, 2 - margin, 2 + margin))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_interval_is_that_of_scipys_paired_test(count: int) -> None:
    """Catches wrong degrees of freedom, and an interval of unpaired samples."""
    random = np.random.default_rng(count)
    a, b = random.normal(30, 1, count), random.normal(30.2, 1, count)
    found = summarise(dict(enumerate(a)), dict(enumerate(b)))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((expected.low, expected.high))
    assert (found["mean"], found["deviation"]) == pytest.approx((a.mean(), a.std(ddof=1)))


def test_seeds_are_paired_by_number_not_by_place() -> None:
    """Catches a zip of two lists when one seed failed: the difference would be that of other seeds."""
    assert summarise({2: 5.0, 0: 3.0, 1: 4.0}, {0: 1.0, 2: 4.0, 9: 100.0})["difference"] == 1.5


def test_one_seed_has_a_difference_without_an_interval() -> None:
    """Catches an interval of width 0, which would be called clear."""
    one = {"mean": 2.0, "deviation": None, "difference": 1.0, "difference_low": None, "difference_high": None}
    assert summarise({0: 2.0}, {0: 1.0}) == one
    assert summarise({0: 2.0}, {1: 1.0}) == one | {"difference": None}
    assert set(summarise({}, {}).values()) == {None}
