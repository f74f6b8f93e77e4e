"""Selection of the images that a report shows with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import chain, zip_longest
from typing import Any


def sample_images(records: Sequence[dict[str, Any]], count: int, include: Sequence[str] = ()) -> dict[str, str]:
    """Choose images with tiles: a third with the largest loss, a third with the smallest gain, the rest evenly spaced.

    Args:
        records: records of finished images, sorted by id (`idc_ray.store.INDEX_SCHEMA`).
        count: maximum number of images.
        include: names or patterns of images that come first.

    Returns:
        Reason of each chosen image by id, the most important first.
    """
    tiled = [record for record in records if record["tiles"]]
    chosen = {
        each["image_id"]: "requested"
        for each in tiled
        if any(fnmatchcase(each["source"], pattern) for pattern in include)
    }
    matched = [each for each in tiled if each["loss_end"] is not None and each["loss_start"] is not None]
    third = count // 3
    worst = sorted(matched, key=lambda each: -each["loss_end"])[:third]
    least = sorted(matched, key=lambda each: -_change(each))[:third]
    others = tiled[:: max(1, len(tiled) // max(1, count))]  # ids are hashes: every choice by position is random
    reasons = ("large loss", "little gained", "sample")
    for row in zip_longest(worst, least, others):
        for each, reason in zip(row, reasons, strict=True):
            if each is not None and len(chosen) < count:
                chosen.setdefault(each["image_id"], reason)
    for each in chain(worst, least, tiled):  # fill up where evenly spaced ones were chosen already
        if len(chosen) < count:
            chosen.setdefault(each["image_id"], "sample")
    return chosen


def _change(record: dict[str, Any]) -> float:
    return float(record["loss_end"] / record["loss_start"]) if record["loss_start"] else 1.0
