"""Photographs in a folder, and a job on them that is small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idc_ray.photographs import photographs

#: Of the condense job: everything of the method takes part, and an image takes a tenth of a second.
SMALL: dict[str, Any] = {
    "tile_size": 16,
    "ratio": 2 / 9,
    "matching": "both",
    "init": "random",  # so that image ids matter
    "iterations": 4,
    "rlff": {"num_frequencies": 32, "num_held_out": 32, "num_sets": 2},
}

#: The same of the whole job.
SMALL_JOB = SMALL | {"mlflow": {"enabled": False}, "gallery_images": 0, "report_images": 0, "actors": {"max_size": 1}}

SIDE = 96


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The middle of three photographs, as PNG."""
    folder = tmp_path_factory.mktemp("photos")
    for path in photographs()[:3]:
        with Image.open(path) as image:
            left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
            image.crop((left, top, left + SIDE, top + SIDE + 1)).save(folder / f"{path.stem}.png")
    return folder
