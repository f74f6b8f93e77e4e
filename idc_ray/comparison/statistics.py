"""Means over seeds, and paired differences with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["CONFIDENCE", "Difference", "Spread", "paired_difference", "spread"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean over ``count`` seeds, and sample standard deviation (NaN for one seed)."""

    mean: float
    deviation: float
    count: int


@dataclass(frozen=True)
class Difference:
    """Mean difference over the ``count`` seeds that both arms have; bounds are NaN for one seed."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and deviation of one value per seed; None without values."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Spread(float(np.mean(values)), deviation, len(values))


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """Mean of value minus reference by seed, with Student's interval: mean -/+ t(n - 1) s / sqrt(n).

    Students of one seed have the same initial weights, so differences vary less than values.

    Args:
        values: values by seed.
        reference: values by seed; seeds of only one of the two are left out.
        confidence: level of the two-sided interval.

    Returns:
        The difference; None if no seed is shared.
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - reference[seed] for seed in seeds])
    mean, count = float(differences.mean()), len(seeds)
    if count == 1:
        return Difference(mean, math.nan, math.nan, 1)
    error = float(differences.std(ddof=1)) / math.sqrt(count)
    margin = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    return Difference(mean, mean - margin, mean + margin, count)
