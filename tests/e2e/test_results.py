"""What comes out, for every kind of input, method and pool: in one process, on the cluster of the test session."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from idc_ray.config import load_config
from idc_ray.images import downscale, encode_png
from idc_ray.photographs import photographs
from idc_ray.pipeline.condense import condense
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import read_manifest
from idc_ray.store.verify import verify
from tests.e2e.conftest import IMAGES, SMALL, picture, rows, write_pictures

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]

QUICK = SMALL | {"iterations": 1, "gallery_images": 0}


@pytest.fixture(autouse=True)
def cluster(ray_cluster: Any, data_context: Any) -> None:
    """A running cluster, which the job joins."""


def make(source: Path | str, output: Path, **settings: object) -> pa.Table:
    chosen = QUICK | {name.replace("__", "."): value for name, value in settings.items()}
    assert condense(load_config(None, {"input": str(source), "output": str(output), **chosen})) == 0
    return rows(output)


def pictures(table: pa.Table, column: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(value["bytes"]))) for value in table[column].to_pylist()]


def test_pool_batch_and_order_change_no_byte(photos: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    """Two workers, other batches, and a list in another order.

    That an image's tiles do not depend on its neighbours is tested of the condenser.
    """
    names = [f"{i:02d}.png" for i in range(IMAGES)][::-1]
    (photos / "list.txt").write_text("\n".join(names))
    other = {"actors__max_size": 2, "actors__images_per_step": 3, "iterations": SMALL["iterations"]}
    listed = make(photos / "list.txt", tmp_path / "listed", **other)
    (photos / "list.txt").unlink()
    assert listed.equals(undisturbed)


def test_selected_tiles_are_the_images_own(tmp_path: Path) -> None:
    """LR tiles are crops of the LR image; with real labels HR tiles are the same crops of the HR image."""
    method = "loss"  # it looks at HR to choose; tests of selection have all methods
    source = write_pictures(tmp_path / "photos", 2)
    real = make(source, tmp_path / "real", method=method, labels="real", scale=2)
    taught = make(source, tmp_path / "taught", method=method)
    assert real["lr"].equals(taught["lr"])
    assert not real["hr"].equals(taught["hr"])
    for row, lr, hr in zip(real.to_pylist(), pictures(real, "lr"), pictures(real, "hr"), strict=True):
        whole = picture(int(row["source"][:2]))
        top, left = row["top"], row["left"]
        assert np.array_equal(lr, downscale(whole, 2)[top : top + 16, left : left + 16])
        assert np.array_equal(hr, whole[2 * top : 2 * (top + 16), 2 * left : 2 * (left + 16)])
        assert (row["method"], row["labels"]) == (method, "real")


def test_difficulty_gives_hard_images_more_and_easy_ones_none(tmp_path: Path) -> None:
    """Less than one tile an image: the ratio is met in all, flat images get nothing and still count as done."""
    source = tmp_path / "photos"
    write_pictures(source, 8)
    for i in range(8):
        (source / f"flat{i}.png").write_bytes(encode_png(np.full((100, 132, 3), 30 * i, np.uint8)))
    output = tmp_path / "out"
    table = make(source, output, allocation="difficulty", ratio=0.05)
    assert not any("flat" in name for name in table["source"].to_pylist())
    manifest = read_manifest(resolve(str(output)))
    assert manifest is not None
    assert manifest.images == 16
    assert table.num_rows == round(0.05 * 16 * 50 * 66 / 16**2)  # the ratio of the pixels, to half a tile


def test_paired_folders_and_parquet(tmp_path: Path) -> None:
    """LR is the user's own, not bicubic; the same images from Parquet give the same tiles."""
    source = write_pictures(tmp_path / "hr", 2)
    (tmp_path / "lr").mkdir()
    for i in range(2):
        own = picture(i)[::2, ::2]
        (tmp_path / "lr" / f"{i:02d}.png").write_bytes(encode_png(own))
    table = make(source, tmp_path / "paired", method="random", labels="real", source__lr_input=str(tmp_path / "lr"))
    for row, lr in zip(table.to_pylist(), pictures(table, "lr"), strict=True):
        expected = picture(int(row["source"][:2]))[::2, ::2]
        assert np.array_equal(lr, expected[row["top"] : row["top"] + 16, row["left"] : row["left"] + 16])

    files = sorted(source.iterdir())
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    pq.write_table(pa.table({"image": images, "label": [1, 2]}), tmp_path / "images.parquet")
    two = {"iterations": 0, "ratio": 0.1552}  # exactly two tiles each: image ids, which differ, decide the rounding
    from_parquet = make(tmp_path / "images.parquet", tmp_path / "from_parquet", **two)
    from_folder = make(source, tmp_path / "from_folder", **two)
    contents = [sorted(lr.tobytes() for lr in pictures(table, "lr")) for table in (from_parquet, from_folder)]
    assert contents[0] == contents[1]
    assert from_folder["kept_start"].to_pylist() == [None] * from_folder.num_rows  # nothing was optimised


def test_rows_open_everywhere_and_hr_is_what_lr_came_from(tmp_path: Path) -> None:
    """Plain pyarrow, and Hugging Face datasets show pictures; HR shrunk is LR again, without a colour shift."""
    from datasets import load_dataset

    source, output = tmp_path / "photographs", tmp_path / "out"
    source.mkdir()
    for photograph in photographs()[:3]:
        shutil.copy(photograph, source)
    table = make(source, output, iterations=20, tile_size=24, ratio=0.02)
    assert pq.read_table(output / "shards")["lr"].equals(table["lr"])
    shown = load_dataset("parquet", data_files=f"{output}/shards/*.parquet", split="train", cache_dir=str(tmp_path))
    assert shown[0]["lr"].size == (24, 24)
    assert shown[0]["hr"].size == (48, 48)
    for lr, hr in zip(pictures(table, "lr"), pictures(table, "hr"), strict=True):
        error = downscale(hr, 2).astype(float) - lr
        assert 10 * np.log10(255**2 / np.mean(error**2)) >= 35
        assert np.abs(error.mean((0, 1))).max() < 1


def test_one_tracked_run_over_all_launches(photos: Path, tmp_path: Path) -> None:
    """Params, curves, gallery, manifest and the input are there; the same command again continues the same run."""
    from mlflow import MlflowClient

    output = tmp_path / "out"
    settings = {"mlflow__enabled": True, "gallery_images": 2, "report_images": 3}
    make(photos, output, **settings)
    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'idc_ray'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["rlff.num_frequencies"] == "32"
    assert run.data.metrics["images_done"] == IMAGES
    assert 0 < run.data.metrics["loss_end"] < run.data.metrics["loss_start"]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {
        "config.yaml",
        "manifest.json",
        "gallery.png",
    }
    assert len(run.inputs.dataset_inputs) == 1
    assert Image.open(output / "gallery.png").size[0] > 100
    html = (output / "report.html").read_text()
    data = json.loads(html.partition('id="report-data">')[2].partition("</script>")[0])[0]
    assert 'badge finished">' in html
    assert (data["numbers"]["images"], len(data["pictures"])) == (IMAGES, 3)
    assert "throughput" in {chart["name"] for chart in data["charts"]}
    assert json.loads((output / "run.json").read_text())["mlflow_run_id"] == run.info.run_id
    make(photos, output, **settings)
    assert [again.info.run_id for again in client.search_runs([experiment.experiment_id])] == [run.info.run_id]


def test_output_in_the_input_folder(tmp_path: Path) -> None:
    """Catches a second attempt that condenses the gallery of the first."""
    source = write_pictures(tmp_path / "photos", 2)
    for _ in range(2):
        table = make(source, source / "out", gallery_images=1)
    assert (source / "out" / "gallery.png").exists()
    assert set(table["source"].to_pylist()) == {"00.png", "01.png"}


@pytest.mark.parametrize("tiles", ["lr", "hr"])
def test_a_set_of_one_kind_of_tiles_is_condensed_checked_and_confirmed(tmp_path: Path, tiles: str) -> None:
    """With gallery and report; LR tiles are those of pairs, HR tiles are as many as they."""
    source, output = write_pictures(tmp_path / "in", 3), tmp_path / "out"
    chosen: dict[str, Any] = {"matching": "cells", "gallery_images": 2, "report_images": 2}
    table = make(source, output, store__tiles=tiles, **chosen)
    other = {"lr": "hr", "hr": "lr"}[tiles]
    assert (table[tiles].null_count, table[other].null_count) == (0, table.num_rows)
    assert set(table["labels"].to_pylist()) == {{"lr": None, "hr": "real"}[tiles]}
    assert {image.shape for image in pictures(table, tiles)} == {{"lr": (16, 16, 3), "hr": (32, 32, 3)}[tiles]}
    assert (output / "gallery.png").exists() and (output / "report.html").exists()
    assert verify(str(output), deep=True).sound
    before = (output / "manifest.json").read_bytes()
    assert make(source, output, store__tiles=tiles, **chosen).equals(table)
    assert (output / "manifest.json").read_bytes() == before
    if tiles == "lr":
        assert table["lr"].equals(make(source, tmp_path / "pairs", **chosen)["lr"])
