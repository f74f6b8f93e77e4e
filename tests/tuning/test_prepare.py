from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from idc_ray.config.base import settings_of
from idc_ray.config.tune import TuneConfig
from idc_ray.errors import BadRequest
from idc_ray.images import encode_png
from idc_ray.tuning.prepare import Plan, prepare
from tests.e2e.conftest import picture
from tests.tuning.conftest import WriteSpace, tune_config


def names(plan: Plan) -> tuple[set[str], set[str]]:
    return {task.image_id for task in plan.images}, {pair.name for pair in plan.validation}


def test_held_out_images_are_not_condensed_and_stay_the_same(
    images: Path, tmp_path: Path, write_space: WriteSpace
) -> None:
    """Catches a validation set that is trained on, or that another order, place or seed changes."""
    space = write_space()
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    plans = [
        prepare(tune_config(space, input=str(folder), output=str(tmp_path / "out"), images=10, **more))  # type: ignore[arg-type]
        for folder, more in ((images, {}), (moved, {"seed": 5, "seeds": [3]}))
    ]
    assert names(plans[0]) == names(plans[1])
    condensed, scored = names(plans[0])
    assert len(condensed) == 4 and len(scored) == 1
    lists = {name: content.decode().split() for name, content in plans[0].lists.items()}
    assert set(lists["images.txt"]) | set(lists["validation.txt"]) == {str(path) for path in images.iterdir()}


def test_a_named_folder_is_scored_on_and_its_images_are_not_condensed(
    images: Path, tmp_path: Path, write_space: WriteSpace
) -> None:
    """Catches the same picture on both sides under another name."""
    folder = tmp_path / "validation"
    folder.mkdir()
    shutil.copy(images / "2.png", folder / "copy.png")
    config = tune_config(
        write_space(), input=str(images), output=str(tmp_path / "out"), images=10, validation=str(folder),
        validation_side=20,
    )  # fmt: skip
    plan = prepare(config)
    condensed, scored = names(plan)
    assert len(condensed) == 4 and scored == {"copy.png"}
    assert plan.validation[0].lr.shape == (20, 20, 3) and plan.validation[0].hr.shape == (40, 40, 3)


@pytest.mark.parametrize(
    ("there", "setting", "named"),
    [
        ("Set14/HR", "validation", "Set14"),
        ("all/Set14/HR", "validation", "all"),
        ("all/B100", "validation", "all"),
        ("Urban100_HR", "validation", "Urban100_HR"),
        ("Set5/HR", "validation", "."),
        ("photos/Set14/HR", "input", "photos"),
    ],
)
def test_a_benchmark_is_not_chosen_on(
    images: Path,
    tmp_path: Path,
    write_space: WriteSpace,
    monkeypatch: pytest.MonkeyPatch,
    there: str,
    setting: str,
    named: str,
) -> None:
    """Catches a folder that holds benchmarks, one that is called a little otherwise, and one named from inside."""
    shutil.copytree(images, tmp_path / there)
    monkeypatch.chdir(tmp_path / "Set5" if named == "." else tmp_path)
    config = tune_config(write_space(), **{"input": str(images), "output": str(tmp_path / "out"), setting: named})
    with pytest.raises(BadRequest, match="a benchmark, and must not be used for tuning if results are tested on it"):
        prepare(config)


def test_images_that_cannot_be_used_do_not_starve_the_sample(
    images: Path, tmp_path: Path, write_space: WriteSpace, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a sweep that gives up, or takes fewer images without a word, after a number of useless ones."""
    folder = tmp_path / "photos"
    shutil.copytree(images, folder)
    for number in range(30):
        (folder / f"tiny{number}.png").write_bytes(encode_png(np.zeros((8, 8, 3), np.uint8)))
    validation = tmp_path / "validation"
    validation.mkdir()
    (validation / "one.png").write_bytes(encode_png(picture(9, 72, 70)))
    common = {"input": str(folder), "output": str(tmp_path / "out"), "validation": str(validation)}
    assert len(prepare(tune_config(write_space(), images=2, **common)).images) == 2
    assert "only" not in caplog.text
    assert len(prepare(tune_config(write_space(), images=9, **common)).images) == 5
    assert "only 5 of 35 images can be read and have a tile" in caplog.text


def test_why_nothing_is_left_to_condense_is_named(images: Path, tmp_path: Path, write_space: WriteSpace) -> None:
    """Catches the blame of images that are held out, or scored on, as unreadable."""
    output = str(tmp_path / "out")
    with pytest.raises(BadRequest, match="all images of .* are held out for validation"):
        prepare(tune_config(write_space(), input=str(images), output=output, validation_share=0.99))
    with pytest.raises(BadRequest, match="all 3 images of .* are also validation images"):
        prepare(tune_config(write_space(), input=str(images), output=output, validation=str(images)))


def test_the_identity_of_a_sweep_has_all_that_results_depend_on(
    images: Path, tmp_path: Path, write_space: WriteSpace
) -> None:
    """Catches a change that goes unseen, and limits that cannot be raised."""
    base = {"input": str(images), "output": str(tmp_path / "out")}
    other = tmp_path / "others"
    other.mkdir()
    for seed in range(5, 9):
        (other / f"{seed}.png").write_bytes(encode_png(picture(seed, 72, 70)))

    def identity(parameters: object = None, **changes: object) -> dict[str, Any]:
        return prepare(tune_config(write_space(parameters), **base | changes)).identity  # type: ignore[arg-type]

    first = identity()
    # Input, teacher and validation count by their content, which is the same here.
    limits: dict[str, Any] = {
        "output": str(tmp_path / "other"), "teacher": None, "samples": 9, "hours": 3, "seed": 1, "report": False,
        "attempts": 9, "dry_run": True, "overwrite": True, "retry_failed": True, "actors.min_size": 2,
        "actors.max_size": 3, "actors.initial_size": 2, "actors.cpus": 2, "actors.gpus": 1,
        "actors.images_per_step": 2, "actors.device": "cpu", "actors.ray_address": "auto", "mlflow.enabled": True,
        "mlflow.tracking_uri": "x", "mlflow.experiment": "x", "mlflow.run_name": "x",
    }  # fmt: skip
    for name, value in limits.items():
        assert identity(**{name: value}) == first, name
    others: dict[str, Any] = {
        "input": str(other), "scale": 4, "search": "random", "grid_points": 2, "objectives": ["psnr", "ratio"],
        "stopper": "none", "rungs": 2, "reduction": 3, "seeds": 1, "condense": {"tile_size": 16},
        "train": {"iterations": 5, "patch_size": 12}, "actors.threads": 2, "actors.dtype": "bfloat16", "images": 2,
        "validation": str(other), "validation_share": 0.5, "validation_images": 1, "validation_side": 18,
    }  # fmt: skip
    for name, value in others.items():
        changes = {"validation_share": 0.5} if name == "validation_images" else {}
        assert identity(**{name: value}, **changes) != identity(**changes), name
    assert identity({"loss.gamma": [0, 1]}) != first
    assert {setting.name for setting in settings_of(TuneConfig)} == {"space", *limits, *others}


def test_images_that_hold_no_tile_are_refused(images: Path, tmp_path: Path, write_space: WriteSpace) -> None:
    space = write_space({"tile_size": [16, 64]})
    config = tune_config(space, input=str(images), output=str(tmp_path / "out"), condense={})
    with pytest.raises(BadRequest, match="no validation images|has a tile of 64 x 64"):
        prepare(config)
