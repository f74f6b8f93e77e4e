"""What ``method: auto`` stands for: the method that was measured best for a ratio."""

from __future__ import annotations

#: Largest ratio, method, and where the measurement is recorded. Between measured ratios, the geometric mean divides.
_BEST: tuple[tuple[float, str, str], ...] = (
    (0.045, "idc", "best of twelve methods at 0.02 for a small student: docs/results.md, small student"),
    (1.0, "sobel", "best of four methods at 0.1 for EDSR-baseline: docs/results.md, large student (unfinished)"),
)


def best_method(ratio: float, selects: bool = False) -> tuple[str, str]:
    """Method for a ratio in (0, 1], and the reason as text.

    Args:
        ratio: share of the pixels that is kept.
        selects: only methods that select crops, as real labels need.
    """
    if selects:
        return "sobel", "the best method measured that selects crops: docs/results.md"
    return next((method, reason) for most, method, reason in _BEST if ratio <= most)
