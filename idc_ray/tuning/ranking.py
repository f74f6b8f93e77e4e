"""Which trials are best."""

from __future__ import annotations

import math
from collections.abc import Sequence

from idc_ray.tuning.records import TrialRecord

__all__ = ["HIGHER_IS_BETTER", "knee", "pareto_front", "ranked"]

HIGHER_IS_BETTER = {"psnr": True, "ratio": False, "cost": False}

ORDER = {"finished": 0, "stopped": 1, "running": 2, "failed": 3}


def ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Finished trials by PSNR; then those stopped early, the latest first; then the others."""

    def key(record: TrialRecord) -> tuple[int, int, float, int]:
        step = 0 if record.ended_well else -record.step
        return ORDER[record.status], step, math.inf if record.psnr is None else -record.psnr, record.number

    return sorted(records, key=key)


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Those that no other is as good as in everything and better in something; by PSNR, highest first."""
    losses = {record.number: _losses(record, objectives) for record in records}

    def beaten(record: TrialRecord) -> bool:
        mine = losses[record.number]
        return any(
            other != mine and all(theirs <= own for theirs, own in zip(other, mine, strict=True))
            for other in losses.values()
        )

    return ranked([record for record in records if not beaten(record)])


def knee(front: Sequence[TrialRecord], objectives: Sequence[str]) -> TrialRecord:
    """The trial nearest to the best of each objective, where the front spans 0 to 1 in each."""
    losses = [_losses(record, objectives) for record in front]
    lows, highs = [min(column) for column in zip(*losses, strict=True)], [max(c) for c in zip(*losses, strict=True)]

    def distance(index: int) -> float:
        parts = zip(losses[index], lows, highs, strict=True)
        return math.hypot(*[(loss - low) / (high - low) if high > low else 0.0 for loss, low, high in parts])

    return front[min(range(len(front)), key=distance)]


def _losses(record: TrialRecord, objectives: Sequence[str]) -> tuple[float, ...]:
    return tuple(-record.objective(name) if HIGHER_IS_BETTER[name] else record.objective(name) for name in objectives)
