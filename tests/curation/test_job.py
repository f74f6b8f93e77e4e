from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage.data import astronaut

import idc_ray
from idc_ray.config import load
from idc_ray.config.curate import CurateConfig
from idc_ray.curation.job import curate
from idc_ray.errors import BadRequest, IdcError, QuarantinedImages
from idc_ray.images import encode_png, image_id
from idc_ray.results import CurateResult

HALF, COPY = image_id("half.png"), image_id("copy.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A photograph, one half of which is flat; the same, smaller; one that is too small; and one that is torn."""
    root = tmp_path / "in"
    root.mkdir()
    half = astronaut()[100:356, 150:406].copy()
    half[:, 128:] = 90
    (root / "half.png").write_bytes(encode_png(half))
    Image.fromarray(half).resize((250, 250)).save(root / "copy.png")
    (root / "small.png").write_bytes(encode_png(half[:100, :100]))
    (root / "torn.png").write_bytes(encode_png(half)[:500])
    return root


@pytest.fixture
def run(folder: Path, tmp_path: Path, joined: dict[str, Any]) -> Any:
    def run(output: str = "out", **more: Any) -> CurateResult:
        settings = {"tile": 128, "ray_address": joined["actors.ray_address"], "mlflow": {"enabled": False}, **more}
        return idc_ray.curate(folder, tmp_path / output, **settings)

    return run


def files(output: Path) -> dict[str, bytes]:
    """Contents by name, without times."""
    paths = (path for path in output.rglob("*") if path.is_file() and path.parent.parent.name != "quarantine")
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in paths if path.name != "report.html"}


@pytest.mark.ray
def test_tiles_that_pass_are_written_and_all_else_is_counted_and_shown(run: Any, tmp_path: Path) -> None:
    """Catches tiles of another place, filters without effect, an image lost without a reason, pictures of others."""
    result = run()
    assert (result.num_images, result.num_tiles, result.num_near_duplicates) == (1, 2, 1)
    assert result.dropped == {"exposure": 0, "flatness": 2, "blur": 0, "blockiness": 0, "noise": 0}
    assert {image.source: image.code for image in result.quarantined} == {
        "small.png": "too_small",
        "torn.png": "truncated",
    }
    tiles = {name: data for name, data in files(tmp_path / "out").items() if name.startswith("tiles/")}
    assert sorted(tiles) == [f"tiles/{HALF}_{top:05d}_00000.png" for top in (0, 128)]
    pixels = np.asarray(Image.open(io.BytesIO(tiles[f"tiles/{HALF}_00128_00000.png"])))
    np.testing.assert_array_equal(pixels, astronaut()[228:356, 150:278])
    picture = np.asarray(Image.open(tmp_path / f"out/dropped/flatness-{HALF}.webp").convert("RGB"))
    assert np.abs(picture - 90.0).max() < 3
    pair = np.asarray(Image.open(tmp_path / f"out/dropped/near-duplicates-{COPY}.webp").convert("RGB"), float)
    assert np.abs(pair[:180, :180] - pair[:180, 192:372]).mean() < 8
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/webp") == 2 and "copy.png looks like half.png" in page and "truncated" in page


@pytest.mark.ray
def test_a_repeated_run_does_what_is_missing_and_gives_the_same_bytes(run: Any, folder: Path, tmp_path: Path) -> None:
    """Catches that a run after a kill begins anew or leaves something out, and settings that are mixed."""
    run()
    before, output = files(tmp_path / "out"), tmp_path / "out"
    (output / "images" / f"{HALF}.json").unlink()  # as after a kill between the tiles and the record
    (output / f"tiles/{HALF}_00000_00000.png").unlink()
    (output / "curation.json").write_text(json.dumps(json.loads(before["curation.json"]) | {"finished": False}))
    times = {path: path.stat().st_mtime_ns for path in (output / "hashes").iterdir()}
    run()
    assert files(output) == before
    assert times == {path: path.stat().st_mtime_ns for path in (output / "hashes").iterdir()}
    with pytest.raises(BadRequest, match="other settings"):
        run(filters={"noise": 3})
    with pytest.raises(QuarantinedImages, match="2 images"):
        run(strict=True)
    os.remove(folder / "torn.png")
    (folder / "torn.png").write_bytes(encode_png(astronaut()[:128, :128]))
    assert run().num_images == 1 and run(retry_quarantined=True).num_images == 2


@pytest.mark.ray
def test_changed_images_are_done_again_and_tiles_of_new_near_duplicates_removed(
    run: Any, folder: Path, tmp_path: Path
) -> None:
    """Catches tiles of a former content, and both of two near-duplicates of which the larger came later."""
    run()
    Image.fromarray(astronaut()[100:356, 150:406]).resize((512, 512)).save(folder / "large.png")
    half = astronaut()[100:356, 150:406].copy()
    half[128:] = 90
    (folder / "half.png").write_bytes(encode_png(half))
    later = time.time() + 2
    os.utime(folder / "half.png", (later, later))
    result = run()
    assert result.num_near_duplicates == 0 and result.num_images == 3
    tiles = sorted(path.name for path in (tmp_path / "out/tiles").glob(f"{HALF}*"))
    assert tiles == [f"{HALF}_00000_{left:05d}.png" for left in (0, 128)]
    Image.fromarray(half).resize((600, 600)).save(folder / "larger.png")
    assert run().num_near_duplicates == 1
    assert not list((tmp_path / "out/tiles").glob(f"{HALF}*")) and not (tmp_path / f"out/images/{HALF}.json").exists()


@pytest.mark.ray
def test_of_two_images_of_one_size_that_with_more_bytes_is_kept(run: Any, folder: Path, tmp_path: Path) -> None:
    """Catches a blurred copy that is kept as its name is first."""
    for path in folder.iterdir():
        path.unlink()
    photo = Image.fromarray(astronaut()[100:356, 150:406])
    photo.filter(ImageFilter.GaussianBlur(2)).save(folder / "a.png")
    photo.save(folder / "b.png")
    assert run().num_near_duplicates == 1
    assert {path.name[:16] for path in (tmp_path / "out/tiles").iterdir()} == {image_id("b.png")}


@pytest.mark.ray
def test_curation_is_tracked(run: Any, tmp_path: Path) -> None:
    """Catches a run that is not finished, a second run for a repeated call, and missing counts."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        run(mlflow={"tracking_uri": uri}, near_duplicates=None, report=False)
    client = MlflowClient(uri)
    (experiment,) = [each for each in client.search_experiments() if each.name == "idc_ray_curate"]
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED" and tracked.data.params["tile"] == "128"
    assert tracked.data.metrics["kept"] == 4 and tracked.data.metrics["near-duplicates"] == 0


def test_a_dry_run_counts_and_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"input": str(folder), "output": str(tmp_path / "out"), "tile": 128, "dry_run": True}
    assert curate(load(CurateConfig, None, settings)) == 0
    printed = capsys.readouterr().out
    assert "about 8 of 128 x 128, of which 4 are kept" in printed and "4 images, 2 of which cannot be used" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_a_folder_without_a_usable_image_is_an_error(run: Any, folder: Path) -> None:
    for name in ("half.png", "copy.png"):
        os.remove(folder / name)
    with pytest.raises(IdcError, match="none of the 2 images could be used"):
        run()
