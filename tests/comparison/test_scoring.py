"""What students are scored on, without a student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from idc_ray.comparison.scoring import VALIDATION, Scoring, find_scoring
from idc_ray.config.compare import CompareConfig
from idc_ray.errors import BadRequest
from idc_ray.evaluation.metrics import psnr_y, ssim_y
from idc_ray.images import decode_png, encode_png, resize
from tests.comparison.conftest import compare_config


def scoring_of(config: CompareConfig) -> Scoring:
    return find_scoring(config.benchmarks, config.validation, config.curve, config.scale)


def upscale(lr: np.ndarray) -> np.ndarray:
    return resize.upscale(lr, 2)


def test_validation_images_are_a_column_of_their_own(images: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    """Catches a column that is of the benchmarks, or infinite for a picture of one colour."""
    names = sorted(path.name for path in images.iterdir())
    for name in names:
        (tmp_path / name).write_bytes((images / name).read_bytes())
    (tmp_path / "flat.png").write_bytes(encode_png(np.full((48, 48, 3), 90, np.uint8)))
    config = compare_config(benchmarks=str(benchmark_folder), validation=str(tmp_path))
    scoring = scoring_of(config)
    scoring.check()
    scored = scoring.score(upscale)
    assert list(scored) == scoring.names == ["SetA", "SetB", VALIDATION]
    whole = [decode_png((images / name).read_bytes()) for name in names]
    outputs = [upscale(resize.downscale(hr, 2)) for hr in whole]
    psnrs = [psnr_y(sr, hr, 2) for sr, hr in zip(outputs, whole, strict=True)]
    assert scored[VALIDATION]["images"] == len(names) + 1
    assert scored[VALIDATION]["psnr"] == pytest.approx(np.mean(psnrs), abs=1e-9)
    ssims = [ssim_y(sr, hr, 2) for sr, hr in zip(outputs, whole, strict=True)]
    assert scored[VALIDATION]["ssim"] == pytest.approx((sum(ssims) + 1) / (len(ssims) + 1), abs=1e-6)


def test_nothing_but_exact_images_has_no_psnr(benchmark_folder: Path, tmp_path: Path) -> None:
    """Catches `Infinity` in a stored result, which is no JSON."""
    (tmp_path / "flat.png").write_bytes(encode_png(np.full((48, 48, 3), 90, np.uint8)))
    scored = scoring_of(compare_config(benchmarks=str(benchmark_folder), validation=str(tmp_path))).score(upscale)
    assert scored[VALIDATION]["psnr"] is None
    assert scored["SetA"]["psnr"] > 10


def test_a_validation_that_cannot_be_is_refused(images: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="is not a folder"):
        scoring_of(compare_config(benchmarks=str(benchmark_folder), validation=str(images / "0.png")))
    clash = tmp_path / VALIDATION
    clash.mkdir()
    (clash / "0.png").write_bytes((images / "0.png").read_bytes())
    with pytest.raises(BadRequest, match="a set named validation"):
        scoring_of(compare_config(benchmarks=str(tmp_path), validation=str(images)))
