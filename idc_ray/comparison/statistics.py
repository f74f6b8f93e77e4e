"""Means over seeds, and paired differences with their confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95

NUMBERS = ("mean", "deviation", "difference", "difference_low", "difference_high")

Score = dict[str, float | None]
"""Values of :data:`NUMBERS`; None where they are not known."""


def summarise(values: Mapping[int, float], reference: Mapping[int, float], confidence: float = CONFIDENCE) -> Score:
    """Mean over seeds, sample standard deviation, and mean difference to a reference, paired by seed.

    The bounds of the difference are those of Student's interval: mean -/+ t(n - 1) s / sqrt(n). Students of one seed
    have the same initial weights, so differences vary less than values. One seed has neither deviation nor bounds.

    Args:
        values: values by seed.
        reference: values by seed; seeds of only one of the two have no difference.
        confidence: level of the two-sided interval.
    """
    seeds = sorted(values.keys() & reference.keys())
    mean, deviation = _mean_and_deviation(list(values.values()))
    difference, spread = _mean_and_deviation([values[seed] - reference[seed] for seed in seeds])
    low = high = None
    if difference is not None and spread is not None:
        margin = float(stats.t.ppf((1 + confidence) / 2, len(seeds) - 1)) * (spread / math.sqrt(len(seeds)))
        low, high = difference - margin, difference + margin
    return dict(zip(NUMBERS, (mean, deviation, difference, low, high), strict=True))


def _mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    mean = float(np.mean(values)) if values else None
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None
