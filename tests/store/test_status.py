from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from idc_ray.errors import BadRequest
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import holder_text
from idc_ray.store.inflight import Inflight, write_inflight
from idc_ray.store.layout import shard_of
from idc_ray.store.lock import lock
from idc_ray.store.manifest import write_manifest
from idc_ray.store.quarantine import quarantine_image
from idc_ray.store.run_record import begin_run, update_run
from idc_ray.store.status import read_status


def launch(seconds_ago: float) -> str:
    return f"{datetime.fromtimestamp(time.time() - seconds_ago, UTC):%Y%m%dT%H%M%S}-0a1b2c3d"


def begin(store: StorageFolder, make: SimpleNamespace, images: int | None) -> None:
    begin_run(store, make.run_record())
    update_run(store, images=images)


def test_an_empty_place_is_no_run(store: StorageFolder) -> None:
    with pytest.raises(BadRequest, match=r"run\.json does not exist; give the --output"):
        read_status(store)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    """Catches a traceback for `jobs/status.py out/gallery.png`."""
    (tmp_path / "gallery.png").write_bytes(b"x")
    with pytest.raises(BadRequest, match=r"run\.json does not exist; give the --output"):
        read_status(resolve(str(tmp_path / "gallery.png")))


def test_a_run_from_its_start_to_its_end(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches images that are counted twice or not at all while they move from parts to shards."""
    begin(store, make, 6)
    status = read_status(store)
    assert (status.state, status.done, status.last_commit, status.per_second) == ("stopped", 0, None, None)
    for name in "abcd":
        make.commit(store, f"{name}.png")
    quarantine_image(store, make.DIGEST, make.quarantine_entry("bad.png"))
    status = read_status(store)
    assert (status.done, status.in_parts, status.shards, status.quarantined) == (4, 4, 0, 1)
    assert [entry.reason for entry in status.reasons] == ["the file ends after 12 of 40 rows"]
    assert status.state == "stopped"

    shard = shard_of(make.image_id("a.png"), 2)
    compact(store, make.DIGEST, shard, 2)
    status = read_status(store)
    assert (status.done, status.shards) == (4, 1)
    assert status.in_parts < 4
    make.commit(store, "a.png", shade=7)  # redone: in the shard and a part
    assert read_status(store).done == 4

    make.commit(store, "e.png", tiles=0)
    for number in (0, 1):
        compact(store, make.DIGEST, number, 2)
    assert read_status(store).state == "stopped", "without a manifest it is not finished"
    write_manifest(store, make.DIGEST, 24, {"wall": 3.0}, 6)
    status = read_status(store)
    assert (status.state, status.done, status.in_parts) == ("finished", 5, 0)
    update_run(store, images=7)
    assert read_status(store).state == "stopped", "an input that has grown is not finished"


def test_what_runs_and_what_was_left(store: StorageFolder, make: SimpleNamespace) -> None:
    begin(store, make, 10)
    ours, old = launch(100), launch(5000)
    for name, what in ((ours, "a"), (old, "b")):
        write_inflight(store, name, "w", Inflight([make.image_id(what)], False, "n", 1, time.time()))
    with lock(store, holder_text(ours)):
        status = read_status(store)
    assert status.state == "running"
    assert [one.launch for one in status.in_flight] == [ours]
    assert [one.launch for one in status.left] == [old]
    status = read_status(store)
    assert not status.in_flight
    assert len(status.left) == 2


def test_speed_is_of_this_launch(tmp_path: Path, make: SimpleNamespace) -> None:
    """Catches a pause between two attempts that lowers the rate, and images in shards that do not count."""
    store = resolve(str(tmp_path))
    begin(store, make, 30)
    for number in range(10):
        make.commit(store, f"{number}.png")
    for number, part in enumerate(sorted(tmp_path.rglob("parts/*/*/*.parquet"))):
        then = time.time() - (20 if number < 6 else 40_000)
        os.utime(part, (then, then))
    with lock(store, holder_text(launch(60))):
        status = read_status(store)
    assert status.per_second == pytest.approx(6 / 60, rel=0.1)
    assert status.seconds_left == pytest.approx(20 / (6 / 60), rel=0.1)
    assert status.last_commit == pytest.approx(time.time() - 20, abs=5)
    assert read_status(store).per_second is None
    with lock(store, holder_text(launch(60))):
        compact(store, make.DIGEST, 0, 2)
        assert read_status(store).per_second is None, "nothing was finished since the last shard"


def test_as_json(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches what JSON cannot hold, and a configuration or a traceback in a program's hands."""
    begin(store, make, 2)
    make.commit(store, "a.png")
    quarantine_image(store, make.DIGEST, make.quarantine_entry("b.png", traceback="secret"))
    text = json.dumps(read_status(store).as_dict(), allow_nan=False)
    value = json.loads(text)
    assert value["images"] == {"total": 2, "done": 1, "quarantined": 1}
    assert value["quarantined"][0]["source"] == "b.png"
    assert value["manifest"] is None
    assert "secret" not in text


def test_it_only_reads(make: SimpleNamespace) -> None:
    objects = make.ObjectStore()
    store = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
    begin(store, make, 1)
    make.commit(store, "a.png")
    before = list(objects.changes)
    read_status(store)
    assert objects.changes == before


def test_thousands_of_parts_and_failures_are_quick(tmp_path: Path, make: SimpleNamespace) -> None:
    """Catches a status that opens every part: these are empty files."""
    store = resolve(str(tmp_path))
    begin(store, make, 20_000)
    for number in range(5000):
        name = make.image_id(str(number))
        part = tmp_path / "parts" / make.DIGEST / name[:2] / f"{name}.parquet"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    start = time.perf_counter()
    status = read_status(store)
    assert status.done == 5000
    assert time.perf_counter() - start < 5
