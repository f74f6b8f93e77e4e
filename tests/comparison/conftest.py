"""A comparison small enough for a test, and results made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from idc_ray.comparison.results import Result
from idc_ray.config import load
from idc_ray.config.compare import CompareConfig
from idc_ray.images import encode_png
from tests.e2e.conftest import picture

SETTINGS: dict[str, object] = {
    "benchmarks": "unused",
    "methods": ["whole", "random", "idc"],
    "ratios": 0.2,
    "students": "tiny",
    "networks": {"tiny": {"model": "edsr_small", "model_arguments": {"channels": 8, "blocks": 1}}},
    "seeds": [0, 1],
    "condense": {
        "tile_size": 16, "iterations": 2, "matching": "both", "teacher_batch_size": 2,
        "rlff": {"num_frequencies": 16, "num_held_out": 16, "num_sets": 2, "padding": 2},
    },
    "train": {"iterations": 3, "batch_size": 2, "patch_size": 12, "optimizer.learning_rate": 1e-3},
    "mlflow.enabled": False,
    "actors.max_size": 2,
}  # fmt: skip


def compare_config(**overrides: object) -> CompareConfig:
    return load(CompareConfig, None, SETTINGS | {name.replace("__", "."): value for name, value in overrides.items()})


def result(arm: str, seed: int, psnr: float, **changes: object) -> Result:
    """Of an arm METHOD-RATIO-LABELS-ALLOCATION, or whole-LABELS, on one set called Set."""
    method, *parts = arm.split("-")
    ratio, labels, allocation = (1.0, parts[0], "") if method == "whole" else (float(parts[0]), parts[1], parts[2])
    values = {
        "name": f"{arm}-tiny-0-{seed}", "core": arm, "method": method, "ratio": ratio, "labels": labels,
        "allocation": allocation, "student": "tiny", "seed": seed,
        "set": {"seconds": 90.0, "bytes": 2000, "tiles": 7, "ratio": ratio, "quarantined": 0},
        "steps": 4, "train_seconds": 30.0, "sets": {"Set": {"psnr": psnr, "ssim": psnr / 40, "images": 2}},
        "curve": [(2, psnr - 1), (4, psnr)], "machine": "cpu", "finished": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Result(**values | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, the last a little larger."""
    folder = tmp_path_factory.mktemp("compared")
    for seed in range(4):
        (folder / f"{seed}.png").write_bytes(encode_png(picture(seed, 72, 70 + 2 * (seed == 3))))
    return folder


@pytest.fixture(scope="session")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of one picture each."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for index, name in enumerate(("SetA", "SetB")):
        (folder / name / "HR").mkdir(parents=True)
        (folder / name / "HR" / "0.png").write_bytes(encode_png(picture(10 + index, 48, 52)))
    return folder
