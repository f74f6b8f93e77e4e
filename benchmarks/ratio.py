"""Ratio asked for against the one reached, on eight kinds of folders made from photographs.

Budgets are computed as in the condense job, from real sizes and difficulties; no tile is made. The column before is the
rule of METHOD_VERSION 6: each image rounded by itself, at least one tile with per_image, and the mean difficulty of 64
images.

    python -m benchmarks.ratio --input PHOTOGRAPHS
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Picture, blocks, parser, write_result
from idc_ray.condensation.budget import budgets_of, expected_tiles, mean_difficulty, tile_budget
from idc_ray.condensation.load import load_condenser
from idc_ray.config import CondenseConfig
from idc_ray.images import downscale, grid_count, image_id
from idc_ray.models import bundled_teacher_bytes

TILE, RATIOS, OLD_SAMPLE = 48, (0.1, 0.02, 0.005), 64


def _mixed(folder: Path | None, count: int) -> Iterator[Picture]:
    """Crops of many sizes and shapes."""
    random = np.random.default_rng(0)
    for piece in blocks(folder, 512, 512, 211, count):
        height, width = random.integers(120, 513, 2)
        yield piece[:height, :width]


def kinds(folder: Path | None, less: int) -> dict[str, tuple[int, Callable[[], Iterator[Picture]]]]:
    """Scale and HR images of each kind of folder, ``less`` times fewer."""

    def crops(height: int, width: int, count: int) -> Callable[[], Iterator[Picture]]:
        return lambda: iter(blocks(folder, height, width, 97, max(1, count // less)))

    def grey() -> Iterator[Picture]:
        return (piece.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2) for piece in crops(400, 300, 100)())

    return {
        "200 of 480 x 320": (2, crops(320, 480, 200)),
        "120 of mixed sizes": (2, lambda: _mixed(folder, max(1, 120 // less))),
        "300 of 110 x 100": (2, crops(100, 110, 300)),
        "one of 512 x 512": (2, crops(512, 512, 1)),
        "1,000 of 128 x 128": (2, crops(128, 128, 1000)),
        "20 of 512 x 128": (2, crops(128, 512, 20)),
        "100 grey of 300 x 400": (2, grey),
        "200 of 480 x 320, x4": (4, crops(320, 480, 200)),
    }


def survey(scale: int, images: Iterator[Picture]) -> list[dict[str, Any]]:
    """Sizes and difficulties by the bundled network."""
    config = CondenseConfig(scale=scale, method="random", tile_size=TILE)  # type: ignore[arg-type]
    condenser = load_condenser(config, bundled_teacher_bytes(scale), torch.device("cpu"))
    rows = []
    with torch.no_grad():
        for number, hr in enumerate(images):
            height, width = (side // scale * scale for side in hr.shape[:2])
            lr = downscale(np.ascontiguousarray(hr[:height, :width]), scale)
            size = {"height": lr.shape[0], "width": lr.shape[1]}
            rows.append({"image_id": image_id(f"{number}.png"), **size, "difficulty": condenser.difficulty(lr)})
    return rows


def before(config: CondenseConfig, rows: list[dict[str, Any]]) -> int:
    """Tiles by the former rule."""
    weighed = config.allocation == "difficulty"
    sample = sorted(rows, key=lambda row: row["image_id"])[:OLD_SAMPLE]
    mean = mean_difficulty(sample)["mean_difficulty"]
    tiles = 0
    for row in rows:
        height, width = row["height"], row["width"]
        expected = expected_tiles(config.ratio, height, width, TILE) * (row["difficulty"] / mean if weighed else 1)
        least = 0 if weighed else 1
        tiles += tile_budget(expected, grid_count(height, width, TILE), config.seed, row["image_id"], least)
    return tiles


def main(argv: Sequence[str]) -> None:
    """Print and write the table."""
    arguments = parser(__doc__).parse_args(argv)
    torch.set_num_threads(1)
    lines, figures = [], []
    for name, (scale, images) in kinds(arguments.input, 20 if arguments.quick else 1).items():
        rows = survey(scale, images())
        pixels = sum(row["height"] * row["width"] for row in rows)
        for allocation, ratio in itertools.product(("per_image", "difficulty"), RATIOS):
            config = CondenseConfig(scale=scale, tile_size=TILE, ratio=ratio, allocation=allocation)  # type: ignore[arg-type]
            counts = before(config, rows), sum(budgets_of(config, rows).values())
            reached = [count * TILE**2 / pixels for count in counts]
            figures.append(
                {"folder": name, "allocation": allocation, "asked": ratio, "before": reached[0], "after": reached[1],
                 "tiles": counts[1]}
            )  # fmt: skip
            lines.append(f"| {name} | {allocation} | {ratio:g} | {reached[0]:.4f} | {reached[1]:.4f} | {counts[1]} |")
            print(lines[-1], flush=True)
    write_result("ratio", arguments, {"rows": figures})


if __name__ == "__main__":
    main(sys.argv[1:])
