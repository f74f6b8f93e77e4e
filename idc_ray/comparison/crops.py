"""Crops of benchmark images at which the students differ most, for the report."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from idc_ray.comparison.results import Result
from idc_ray.comparison.scoring import Scoring
from idc_ray.errors import IdcError
from idc_ray.evaluation.metrics import psnr
from idc_ray.images import upscale as bicubic
from idc_ray.models import Upscaler, load_upscaler
from idc_ray.report.pictures import data_uri, webp
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.state import LAST

log = logging.getLogger(__name__)

#: Maximum number of students, of searched images, and of crops.
STUDENTS, LOOKED_AT, KEPT = 8, 6, 3

#: Longest side of what is upscaled of an image, LR pixels, and side of a crop, HR pixels.
PART, CROP = 160, 96

Picture = NDArray[np.uint8]


def find_crops(scoring: Scoring, storage: StorageFolder, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Crops of benchmark images: ground truth, bicubic interpolation, and the outputs of the first seed's students.

    Returns:
        Of each crop its ``set``, ``image``, ``top`` and ``left`` (HR pixels of the part's middle), and ``pictures``:
        ``name``, ``psnr`` of the crop in dB, None where it is infinite or the truth, and ``picture``, a ``data:`` URI.
    """
    students = _students(storage, results)
    if len(students) < 2:
        return []
    scale = scoring.scale
    every = [(each.name, image) for each in scoring.sets for image in each.images]
    found = []
    for name, image in every[:: max(1, len(every) // LOOKED_AT)][:LOOKED_AT]:
        lr, hr = _middle(*image.read(scale, scoring.degrade), scale)
        if min(hr.shape[:2]) < CROP:
            continue
        outputs = {"truth": hr, "bicubic": bicubic(lr, scale)}
        outputs |= {label: student.upscale_image(lr) for label, student in students.items()}
        found.append((*_where(list(outputs.values())[2:]), name, image.hr.name, outputs))
    found.sort(key=lambda each: -each[0])
    return [_crop(top, left, name, file, outputs, scale) for _, top, left, name, file, outputs in found[:KEPT]]


def _students(storage: StorageFolder, results: Sequence[Result]) -> dict[str, Upscaler]:
    """Networks of the first seed by arm; arms with students of several settings in the output are left out."""
    folders = storage.folders("students")
    students: dict[str, Upscaler] = {}
    first = min((result.seed for result in results), default=0)
    for result in results:
        mine = [name for name in folders if re.fullmatch(rf"{re.escape(result.arm)}-[0-9a-f]{{8}}", name)]
        if result.seed != first or len(mine) != 1 or len(students) == STUDENTS:
            continue
        data = storage.read(f"students/{mine[0]}/{first}/{LAST}")
        try:
            if data is not None:
                students[result.arm] = load_upscaler(data, scale=None, name=result.arm)
        except IdcError as error:
            log.warning("the student of %s is not shown in the report: %s", result.arm, error)
    return students


def _middle(lr: Picture, hr: Picture, scale: int) -> tuple[Picture, Picture]:
    """Central part of an LR and HR pair, at most `PART` LR pixels a side."""
    height, width = (min(PART, side) for side in lr.shape[:2])
    top, left = (lr.shape[0] - height) // 2, (lr.shape[1] - width) // 2
    part = hr[scale * top : scale * (top + height), scale * left : scale * (left + width)]
    return np.ascontiguousarray(lr[top : top + height, left : left + width]), np.ascontiguousarray(part)


def _where(outputs: Sequence[Picture]) -> tuple[float, int, int]:
    """Largest difference between outputs within a crop, and the position of that crop."""
    spread = np.stack([output.mean(2) for output in outputs]).std(0)
    sums = np.pad(spread, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[CROP:, CROP:] - sums[:-CROP, CROP:] - sums[CROP:, :-CROP] + sums[:-CROP, :-CROP]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return float(windows[top, left]), int(top), int(left)


def _crop(top: int, left: int, name: str, file: str, outputs: Mapping[str, Picture], scale: int) -> dict[str, Any]:
    parts = {label: output[top : top + CROP, left : left + CROP] for label, output in outputs.items()}
    pictures = []
    for label, part in parts.items():
        value = psnr(part, parts["truth"], scale)
        pictures.append(
            {"name": label, "psnr": round(value, 2) if np.isfinite(value) else None, "picture": data_uri(webp(part))}
        )
    return {"set": name, "image": file, "top": top, "left": left, "side": CROP, "pictures": pictures}
