"""Which images of a condensed set are shown with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import chain, zip_longest
from typing import Any

__all__ = ["sample_images"]


def sample_images(records: Sequence[dict[str, Any]], count: int, include: Sequence[str] = ()) -> dict[str, str]:
    """Choose images that got tiles: a third with the largest loss, a third that gained least, the rest evenly.

    Args:
        records: of finished images, sorted by id, as `idc_ray.store.INDEX_SCHEMA` has them.
        count: most images.
        include: names or patterns of images that come first.

    Returns:
        Why an image was chosen, by its id; the most important first, so that the end may be cut off.
    """
    tiled = [record for record in records if record["tiles"]]
    chosen = {
        each["image_id"]: "asked for"
        for each in tiled
        if any(fnmatchcase(each["source"], pattern) for pattern in include)
    }
    matched = [each for each in tiled if each["loss_end"] is not None and each["loss_start"] is not None]
    third = count // 3
    worst = sorted(matched, key=lambda each: -each["loss_end"])[:third]
    least = sorted(matched, key=lambda each: -_change(each))[:third]
    others = tiled[:: max(1, len(tiled) // max(1, count))]  # ids are hashes: any choice by place is a random one
    reasons = ("large loss", "little gained", "sample")
    for row in zip_longest(worst, least, others):
        for each, reason in zip(row, reasons, strict=True):
            if each is not None and len(chosen) < count:
                chosen.setdefault(each["image_id"], reason)
    for each in chain(worst, least, tiled):  # evenly chosen ones that were chosen before leave room
        if len(chosen) < count:
            chosen.setdefault(each["image_id"], "sample")
    return chosen


def _change(record: dict[str, Any]) -> float:
    return float(record["loss_end"] / record["loss_start"]) if record["loss_start"] else 1.0
