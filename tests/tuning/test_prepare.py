from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from idc_ray.errors import BadRequest
from idc_ray.tuning.prepare import Plan, prepare
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


def test_a_benchmark_is_not_chosen_on(images: Path, tmp_path: Path, write_space: WriteSpace) -> None:
    folder = tmp_path / "Set14" / "HR"
    shutil.copytree(images, folder)
    config = tune_config(write_space(), input=str(images), output=str(tmp_path / "out"), validation=str(folder.parent))
    with pytest.raises(BadRequest, match="a benchmark: what is chosen on it cannot be tested on it"):
        prepare(config)


def test_the_sweep_is_named_by_what_matters(images: Path, tmp_path: Path, write_space: WriteSpace) -> None:
    """Catches a change that goes unseen, and limits that cannot be raised."""
    base = {"input": str(images), "output": str(tmp_path / "out")}

    def digest(parameters: object = None, **changes: object) -> str:
        return prepare(tune_config(write_space(parameters), **base | changes)).sweep.digest  # type: ignore[arg-type]

    first = digest()
    for limits in ({"samples": 9}, {"hours": 3}, {"attempts": 9}, {"actors.max_size": 1}, {"mlflow.enabled": True}):
        assert digest(**limits) == first, limits
    train = {"iterations": 5, "patch_size": 12}
    for other in ({"seeds": 1}, {"images": 2}, {"reduction": 3}, {"validation_side": 18}, {"train": train}):
        assert digest(**other) != first, other
    assert digest({"loss.gamma": [0, 1]}) != first


def test_images_that_hold_no_tile_are_told(images: Path, tmp_path: Path, write_space: WriteSpace) -> None:
    space = write_space({"tile_size": [16, 64]})
    config = tune_config(space, input=str(images), output=str(tmp_path / "out"), condense={})
    with pytest.raises(BadRequest, match="nothing to score on|holds a tile of 64 x 64"):
        prepare(config)
