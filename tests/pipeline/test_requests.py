"""What images cost in requests to an object store: the figures of docs/scaling.md."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from idc_ray.condensation.tasks import Condensed
from idc_ray.images import encode_png, find_images
from idc_ray.pipeline import worker as module
from idc_ray.pipeline.reading import ReadImages
from idc_ray.pipeline.worker import CondenseWorker
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import resolve
from idc_ray.store.run_record import RunRecord, begin_run
from tests.pipeline.conftest import DIGEST, make_job, picture, teacher_bytes, write_pictures
from tests.s3 import S3, Request

TOGETHER, BATCHES = 16, 4


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ray, "get_gpu_ids", list)
    monkeypatch.setattr(module.ray, "get", lambda reference: reference)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))


class FakeCondenser:
    def condense(self, tasks: list[Any], frugal: bool = False) -> list[Any]:
        tiles = np.zeros((1, 16, 16, 3), np.uint8)
        return [Condensed(tiles, tiles.repeat(2, 1).repeat(2, 2), [(0, 0)], 4, 2.0, 1.0, [2.0], [1.0], False)
                for _ in tasks]  # fmt: skip


def kind(request: Request) -> str:
    return "LIST" if request.method == "GET" and "list-type" in request.query else request.method


@pytest.mark.usefixtures("no_cluster")
def test_an_image_costs_at_most_six_billed_requests(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a record, a check or a file for each image. From reading to the shard; DELETE is free."""
    write_pictures(tmp_path / "in")
    job, _ = make_job(tmp_path)
    data = encode_png(picture(0))
    for i in range(TOGETHER * BATCHES):
        s3.put("bucket", f"requests/in/{i}.png", data)
    listing = find_images(s3.uri("bucket/requests/in"))
    store = resolve(s3.uri("bucket/requests/out"))
    begin_run(store, RunRecord({}, DIGEST, "t", listing.uri, {}, 1, "2026-01-01", "CPUs"))
    job = dataclasses.replace(
        job, store=store, filesystem=listing.filesystem, root="bucket/requests/in", input_uri=listing.uri
    )
    images = listing.manifest.sort_by("image_id")
    # As in a run of a million, whose batches of 16 images have ids that are close to each other.
    near = pa.array([f"{'ab0' if i < len(images) // 2 else 'ab1'}{i:013x}" for i in range(len(images))])
    images = images.set_column(images.schema.get_field_index("image_id"), "image_id", near)
    read, worker = ReadImages(job), CondenseWorker(job, teacher_bytes(), False)  # type: ignore[arg-type]
    worker.condenser = FakeCondenser()  # type: ignore[assignment]
    with s3.counting() as requests:
        for begin in range(0, len(images), TOGETHER):
            statuses = worker(read(images.slice(begin, TOGETHER)))["status"].to_pylist()
            assert {json.loads(each)["outcome"] for each in statuses} == {"done"}
    with s3.counting() as compaction:
        compact(store, DIGEST, 0, 1)
    assert len(find_done(store, DIGEST)) == len(images)
    counts = Counter(map(kind, requests)) + Counter(kind(r) for r in compaction if "/parts/" in f"/{r.key}")
    billed = sum(count for name, count in counts.items() if name != "DELETE") / len(images)
    each = {name: round(count / len(images), 2) for name, count in sorted(counts.items())}
    with capsys.disabled():
        print(f"\nrequests for each image, {TOGETHER} to a batch: {each}, {billed:.2f} billed")
    assert billed <= 6
    assert billed <= 3.2, "what docs/scaling.md states"
