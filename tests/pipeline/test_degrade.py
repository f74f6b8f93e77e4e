from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.data import chelsea, coffee

from idc_ray.config import load
from idc_ray.config.degrade import DegradeConfig
from idc_ray.degradation import apply
from idc_ray.errors import BadRequest
from idc_ray.images import decode_png, encode_png, image_id
from idc_ray.pipeline.degrade import degrade, lr_name


def config(tmp_path: Path, **more: Any) -> DegradeConfig:
    settings = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "degradation": "classic"}
    return load(DegradeConfig, None, {**settings, **more})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    (root / "a").mkdir(parents=True)
    (root / "a" / "cat.png").write_bytes(encode_png(chelsea()[:201, :300]))
    (root / "cup.png").write_bytes(encode_png(coffee()[:128, :128]))
    (root / "torn.png").write_bytes(encode_png(coffee())[:900])
    return root


@pytest.mark.ray
def test_images_are_those_of_their_recorded_parameters_and_of_a_repeated_run(
    folder: Path, tmp_path: Path, joined: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches parameters that are not the applied ones, one draw for all images, and a run that begins anew."""
    made = config(tmp_path, ray_address=joined["actors.ray_address"])
    assert degrade(made) == 0
    assert "2 images in" in capsys.readouterr().out
    out, drawn = tmp_path / "out", []
    for name, hr in (("a/cat", chelsea()[:200, :300]), ("cup", coffee()[:128, :128])):
        record = json.loads((out / f"parameters/{image_id(f'{name}.png')}.json").read_text())
        lr = decode_png((out / f"LR/{name}.png").read_bytes())
        np.testing.assert_array_equal(lr, apply(record["degradation"], hr, 2))
        drawn.append(record["degradation"])
    assert drawn[0] != drawn[1]
    assert len(list((out / "quarantine").rglob("*.json"))) == 1
    before = {path: path.read_bytes() for path in (out / "LR").rglob("*.png")}
    (out / "LR/cup.png").unlink()
    (out / f"parameters/{image_id('cup.png')}.json").unlink()
    times = {path: path.stat().st_mtime_ns for path in before if path.name == "cat.png"}
    assert degrade(made) == 0
    assert {path: path.read_bytes() for path in (out / "LR").rglob("*.png")} == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    with pytest.raises(BadRequest, match="other settings"):
        degrade(config(tmp_path, seed=1))


def test_two_images_of_one_name_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "cup.jpg").write_bytes(b"")
    with pytest.raises(BadRequest, match=r"cup\.jpg and cup\.png would be cup\.png"):
        degrade(config(tmp_path))
    assert lr_name("set.parquet#3") == "set.parquet#3.png" != lr_name("set.parquet#4")


def test_a_dry_run_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert degrade(config(tmp_path, dry_run=True)) == 0
    assert "3 images, 1 of which cannot be used" in capsys.readouterr().out and not (tmp_path / "out").exists()
