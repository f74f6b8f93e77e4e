from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from idc_ray.comparison.prepare import prepare
from idc_ray.comparison.table import make_table, table_files
from idc_ray.errors import BadRequest
from tests.comparison.conftest import compare_config, result


@pytest.mark.parametrize("setting", ["benchmarks", "validation"])
def test_images_to_be_scored_on_are_no_training_images(
    images: Path, benchmark_folder: Path, tmp_path: Path, setting: str
) -> None:
    """Catches students that are scored on what they were trained on, as a folder is searched to its bottom."""
    shutil.copytree(images, tmp_path / "all")
    shutil.copytree(benchmark_folder, tmp_path / "all" / "tests")
    scored = {"benchmarks": str(benchmark_folder), "curve": "none"} | {setting: str(tmp_path / "all" / "tests")}
    common = {"output": str(tmp_path / "out"), "methods": "random", "labels": "teacher", "reference": None}
    refused = rf"{setting} .*tests is inside the input .*: 2 images would be used for training and scoring"
    with pytest.raises(BadRequest, match=refused):
        prepare(compare_config(input=str(tmp_path / "all"), **scored, **common))
    assert prepare(compare_config(input=str(tmp_path / "all" / "*.png"), **scored, **common)).arms


def test_unusable_images_are_reported(images: Path, benchmark_folder: Path, tmp_path: Path) -> None:
    """Catches arms that are compared on other images than the head says."""
    common = {"output": str(tmp_path / "out"), "methods": "random", "labels": "teacher", "reference": None}
    plan = prepare(
        compare_config(
            input=str(images), benchmarks=str(benchmark_folder), curve="none", allocations="difficulty", **common
        )
    )
    sets = {each.name: {"psnr": 30.0, "ssim": 0.9, "images": 1} for each in plan.scoring.sets}
    fine = result(
        "random-0.2-teacher-difficulty", 0, 30.0, sets=sets, curve=[], name=plan.arms[0].result_name(plan.data, 0)
    )
    lacking = dataclasses.replace(fine, seed=1, set={**fine.set, "quarantined": 2})
    texts = [table_files(make_table(plan, each, [], {}, 1))["results.md"].decode() for each in ([fine], [lacking])]
    assert "could not be used" not in texts[0]
    assert "- images that could not be used: 2 in random-0.2-teacher-difficulty, seed 1" in texts[1]
