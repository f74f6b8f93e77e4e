"""Distances between empirical characteristic functions.

A characteristic function phi(t) = E exp(i t.u) is kept as a real tensor (..., m, 2): the mean cosine
and the mean sine for each of m frequencies.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Discrepancy = Literal["squared", "amplitude_phase"]

#: Added inside every root: the gradient of a root at 0 is infinite, and flat images do get there.
EPSILON = 1e-8


def discrepancy_per_frequency(
    a: Tensor, b: Tensor, kind: Discrepancy = "squared", alpha: float = 1.0, beta: float = 1.0
) -> Tensor:
    """Distance of two characteristic functions at each frequency.

    ``squared`` is |a - b|^2 (IDC). ``amplitude_phase`` is the square root of alpha (|a| - |b|)^2 +
    2 beta (|a||b| - Re(a conj b)) (NCFM, arXiv 2502.20653, eq. 6); its radicand is |a - b|^2 at
    alpha = beta = 1 and half of it at 0.5.

    Args:
        a: (..., m, 2).
        b: broadcasts with ``a``.
        kind: see above.
        alpha: weight of the amplitude term, at least 0; only for ``amplitude_phase``.
        beta: weight of the phase term, at least 0; only for ``amplitude_phase``.

    Returns:
        (..., m), not negative.
    """
    if kind == "squared":
        return (a - b).square().sum(-1)
    if kind != "amplitude_phase":
        raise ValueError(f"discrepancy is {kind!r}; expected 'squared' or 'amplitude_phase'")
    amplitude_a = (a.square().sum(-1) + EPSILON).sqrt()
    amplitude_b = (b.square().sum(-1) + EPSILON).sqrt()
    amplitude = (amplitude_a - amplitude_b).square()
    phase = 2 * (amplitude_a * amplitude_b - (a * b).sum(-1))  # not negative by Cauchy-Schwarz; rounding can make it
    return ((alpha * amplitude + beta * phase).clamp_min(0) + EPSILON).sqrt()


def discrepancy(a: Tensor, b: Tensor, kind: Discrepancy = "squared", alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Mean of :func:`discrepancy_per_frequency` over the frequencies: (..., m, 2) to (...)."""
    return discrepancy_per_frequency(a, b, kind, alpha, beta).mean(-1)
