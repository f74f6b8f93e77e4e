"""Condensation as a stage of a Ray Data pipeline, on two workers of a real cluster."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import idc_ray
from idc_ray.api.condenser import Tiles, pixels_id
from idc_ray.errors import BadRequest
from idc_ray.images import decode_png, decode_rgb, encode_png, image_id
from tests.api.conftest import SMALL, photos
from tests.e2e.conftest import picture

__all__ = ["photos"]

TWO_WORKERS = {"min_size": 2, "max_size": 2, "cpus": 0.5, "images_per_step": 1}


def pixels(path: Path) -> np.ndarray:
    return decode_rgb(path.read_bytes(), 10**9)


@pytest.fixture(scope="module")
def read(photos: Path) -> list[dict[str, Any]]:
    """The photographs and what cannot be condensed, in a row each."""
    good = [{"bytes": path.read_bytes(), "path": str(path)} for path in sorted(photos.iterdir())]
    torn = {"bytes": good[0]["bytes"][:200], "path": "torn.png"}
    return [torn, *good, {"bytes": None, "path": "none.png"}, {"bytes": encode_png(picture(0)), "path": None}]


@pytest.fixture(scope="module")
def written(read: list[dict[str, Any]], ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Rows of a pipeline: encoded images, a map before, two workers, Parquet after."""
    import ray.data

    def named(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "image_id": row["path"] and image_id(Path(row["path"]).name)}

    folder = tmp_path_factory.mktemp("tiles")
    images = ray.data.from_items(read, override_num_blocks=len(read)).map(named)
    tiles = idc_ray.data.condense(images, scale=2, actors=TWO_WORKERS, **SMALL)
    tiles.write_parquet(str(folder))
    table = pq.read_table(folder)
    assert set(table.column_names) == set(idc_ray.data.TILES.names)
    return sorted(table.to_pylist(), key=lambda row: (row["source"] or "", row["tile_index"] or 0))


def test_a_pipeline_makes_the_tiles_of_a_condenser(written: list[Any], photos: Path) -> None:
    """Catches tiles that depend on the batch or the worker, and labels, places or losses of another image. That the
    job's are the same is what tests/api/test_jobs.py compares the condenser with."""
    condenser = idc_ray.Condenser.from_pretrained("bundled", scale=2, device="cpu", **SMALL)
    for path in photos.iterdir():
        tiles: Tiles = condenser(pixels(path), image_id=image_id(path.name))
        rows = [row for row in written if row["source"] == str(path)]
        assert len(rows) == len(tiles) == 2
        for index, row in enumerate(rows):
            assert (row["tile_index"], row["scale"], row["error"]) == (index, 2, None)
            assert row["image_id"] == tiles.image_id
            assert np.array_equal(decode_png(row["lr"]["bytes"]), tiles.lr[index])
            assert np.array_equal(decode_png(row["hr"]["bytes"]), tiles.hr[index])
            assert (row["top"], row["left"]) == tiles.corners[index]
            assert (row["loss_start"], row["loss_end"]) == (tiles.losses["start"], tiles.losses["end"])


def test_a_broken_image_is_a_row_with_the_reason(written: list[Any]) -> None:
    """Catches one bad file that ends a dataset of a million, or that is lost unseen."""
    bad = {row["source"]: row for row in written if row["error"] is not None}
    assert set(bad) == {"none.png", "torn.png"}
    assert bad["torn.png"]["error"].startswith("truncated: the PNG ends after 200 bytes")
    assert bad["none.png"]["error"].startswith("missing: the row has no image")
    assert bad["torn.png"]["lr"] is None
    unnamed = {row["image_id"] for row in written if row["source"] is None}
    assert unnamed == {pixels_id(picture(0))}
    with pytest.raises(BadRequest, match=r"the row of torn.png has no tile \(truncated"):
        idc_ray.data.decode(bad["torn.png"])


def test_rows_arrive_before_the_last_image_is_read(ray_cluster: Any, tmp_path: Path) -> None:
    """Catches a stage that runs when it is made, or that waits for all of its input: the later images here are only
    there once the first tile is."""
    import ray.data

    first, limit = tmp_path / "first", time.time() + 120

    def load(row: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / f"read{row['id']}").touch()
        while row["id"] >= 2 and not first.exists():
            assert time.time() < limit, "the first tile never came"
            time.sleep(0.05)
        return {"image": picture(row["id"], 64, 64 + 2 * row["id"])}

    images = ray.data.range(5, override_num_blocks=5).map(load, num_cpus=0.5)
    tiles = idc_ray.data.condense(images, scale=2, actors={"max_size": 1, "cpus": 1, "images_per_step": 1}, **SMALL)
    assert not list(tmp_path.iterdir())
    rows = []
    for row in tiles.map(idc_ray.data.decode).iter_rows():
        first.touch()
        rows.append(row)
    assert len({row["image_id"] for row in rows}) == 5
    assert {row["lr"].shape for row in rows} == {(16, 16, 3)}
    assert {row["hr"].shape for row in rows} == {(32, 32, 3)}
    one = next(row for row in rows if row["image_id"] == pixels_id(picture(0, 64, 64)))
    assert one["source"] is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ration": 0.1}, "unknown setting 'ration'; did you mean 'ratio'"),
        ({"actors": {"max_sise": 1}}, "did you mean 'actors.max_size'"),
        ({"output": "out"}, "'output' does not apply here; it is a setting of the whole job"),
        ({"allocation": "difficulty"}, "'allocation' does not apply here"),
        ({"scale": 3}, "only for x2 and x4"),
        ({"tile_size": 8}, "'tile_size' is 8"),
    ],
)
def test_a_wrong_setting_is_refused_at_once(ray_cluster: Any, settings: dict[str, Any], words: str) -> None:
    """Catches a mistake that is known only when the dataset is read."""
    import ray.data

    with pytest.raises(BadRequest, match=words):
        idc_ray.data.condense(ray.data.range(1), **settings)


def test_a_dataset_without_images_fails_with_its_columns(ray_cluster: Any, data_context: Any) -> None:
    import ray.data

    data_context.log_internal_stack_trace_to_stdout = False
    with pytest.raises(Exception, match="the dataset has no column image or bytes, only id"):
        idc_ray.data.condense(ray.data.range(1), scale=2, **SMALL).take(1)
