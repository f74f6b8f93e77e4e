from __future__ import annotations

import heapq
import math
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from idc_ray.images import encode_png
from idc_ray.pipeline import stream
from idc_ray.pipeline.batches import SMALL_PIXELS, Batches, expected_pixels, plan_batches, single_images
from idc_ray.pipeline.cluster import PoolPlan
from idc_ray.pipeline.reading import NO_IMAGE
from idc_ray.pipeline.stream import condense_stream
from tests.pipeline.conftest import make_job, picture

#: Bytes of the PNG file of a small photograph: four to a batch.
SMALL = int(0.3 * SMALL_PIXELS * 1.7)


def manifest(sizes: list[int], ending: str = "png") -> pa.Table:
    names = [f"{i:03d}.{ending}" for i in range(len(sizes))]
    return pa.table({"image_id": names, "source": names, "size": pa.array(sizes, pa.int64())})


def contents(batches: Batches) -> list[list[str]]:
    ids = batches.rows["image_id"].to_pylist()
    parts = [ids[begin : begin + batches.size] for begin in range(0, len(ids), batches.size)]
    return [[each for each in part if each is not None] for part in parts]


def makespan(batches: Batches, sizes: list[int], workers: int) -> float:
    """When the last of some workers is finished that take a batch whenever they are free; one image takes its size."""
    by_id = dict(zip(manifest(sizes)["image_id"].to_pylist(), sizes, strict=True))
    free = [0.0] * workers
    for batch in contents(batches):
        heapq.heappush(free, heapq.heappop(free) + sum(by_id[each] for each in batch))
    return max(free)


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 40, 203])
def test_every_image_is_in_one_batch(count: int, workers: int) -> None:
    """Catches lost and doubled images, and a batch that Ray Data would cut elsewhere."""
    rng = np.random.default_rng(count)
    batches = plan_batches(manifest(rng.integers(1, 40 * SMALL, count).tolist()), 4, workers)
    found = contents(batches)
    assert sorted(chain.from_iterable(found)) == manifest([0] * count)["image_id"].to_pylist()
    assert len(found) == batches.count
    assert all(1 <= len(batch) <= 4 for batch in found)
    assert batches.rows.num_rows == batches.size * batches.count


@pytest.mark.parametrize("seed", range(20))
def test_two_workers_share_a_handful_of_large_images(seed: int) -> None:
    """Catches 86 s for 69 s of work: both batches of 8 photographs were taken by the worker that was up first."""
    sizes = np.random.default_rng(seed).integers(5 * SMALL, 15 * SMALL, 4 + seed % 9).tolist()
    assert makespan(plan_batches(manifest(sizes), 4, 2), sizes, 2) <= max(
        0.6 * sum(sizes), math.ceil(len(sizes) / 2) * max(sizes)
    )
    eight = [10 * SMALL] * 8
    assert makespan(plan_batches(manifest(eight), 4, 2), eight, 2) == sum(eight) / 2


def test_small_images_are_together_until_the_end_is_near() -> None:
    """Catches a job with one call an image, and one whose last batch keeps one worker busy while the others wait."""
    sizes = [SMALL] * 400
    found = contents(plan_batches(manifest(sizes), 4, 2))
    assert all(len(batch) == 4 for batch in found[:90])
    assert [len(batch) for batch in found[-3:]] == [1, 1, 1]
    assert list(chain.from_iterable(found))[:300] == manifest(sizes)["image_id"].to_pylist()[:300], (
        "shards are complete late"
    )
    assert makespan(plan_batches(manifest(sizes), 4, 7), sizes, 7) <= sum(sizes) / 7 + SMALL
    alone = contents(plan_batches(manifest(sizes), 4, 1))
    assert all(len(batch) == 4 for batch in alone)


def test_a_large_image_is_alone_among_small_ones() -> None:
    """Catches minutes in which three finished images wait to be committed for a fourth of 20 megapixels."""
    sizes = [SMALL] * 100
    sizes[10] = 40 * SMALL
    found = contents(plan_batches(manifest(sizes), 4, 1))
    assert ["010.png"] in found
    assert contents(plan_batches(manifest(sizes), 4, 1, math.inf))[2] == ["008.png", "009.png", "010.png", "011.png"]
    assert plan_batches(manifest([40 * SMALL] * 9), 4, 2).size == 1


def test_pixels_are_guessed_by_bytes_and_format() -> None:
    """Catches a JPEG of 8 megapixels that counts like a PNG of one."""
    jpeg, png = expected_pixels(manifest([700_000], "JPG"))[0], expected_pixels(manifest([700_000]))[0]
    assert jpeg > 4 * png
    assert expected_pixels(manifest([-1, 0])).tolist() == [SMALL_PIXELS] * 2  # rows of Parquet files; never nothing


class Sleeping:
    """Replaces a worker: takes time in proportion to the pixels. The first has images before the second is up."""

    def __init__(self, job: Any, teacher: Any, isolated: bool) -> None:
        folder = Path(job.store.root)
        self.busy, self.both, self.name = folder / "busy", folder / "both", "second"
        try:
            (folder / "first").touch(exist_ok=False)
            self.name = "first"
        except FileExistsError:
            wait_for(self.busy)
            self.both.touch()

    def __call__(self, batch: pa.Table) -> pa.Table:
        self.busy.touch()
        wait_for(self.both)
        rows = [row for row in batch.to_pylist() if row["code"] != NO_IMAGE]
        units = sum(row["height"] * row["width"] for row in rows) / (36 * 35)
        time.sleep(0.6 * units)
        text = f'{{"outcome": "done", "worker": "{self.name}", "units": {units}}}'
        return pa.table({"status": [text]})


def wait_for(file: Path) -> None:
    end = time.monotonic() + 60
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)


def test_two_workers_take_at_most_six_tenths_of_the_time_of_one(
    tmp_path: Path, ray_cluster: Any, data_context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ray, with work that sleeps. Catches batches that wait at the worker that was up first."""
    (tmp_path / "in").mkdir()
    for index, side in enumerate((1, 4, 2, 2, 3, 1, 2, 1)):
        (tmp_path / "in" / f"{index}.png").write_bytes(encode_png(picture(index, 72 * side)))
    job, listing = make_job(tmp_path)
    monkeypatch.setattr(stream, "CondenseWorker", Sleeping)
    pool = PoolPlan({"num_cpus": 1.0}, 2, 2, 2, "CPUs")
    rows = list(condense_stream(plan_batches(listing.manifest, 4, 2), job, ray_cluster.put(b""), pool, False))
    by_worker = {name: sum(row["units"] for row in rows if row["worker"] == name) for name in ("first", "second")}
    total = sum(by_worker.values())
    assert total == pytest.approx(16, rel=0.1)
    assert max(by_worker.values()) <= 0.6 * total, by_worker


def test_suspects_are_alone() -> None:
    assert contents(single_images(manifest([SMALL] * 3))) == [["000.png"], ["001.png"], ["002.png"]]
