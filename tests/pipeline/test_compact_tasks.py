from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from ray.exceptions import WorkerCrashedError

from idc_ray.errors import IdcError
from idc_ray.images import image_id
from idc_ray.pipeline import compact_tasks as module
from idc_ray.pipeline.compact_tasks import Compactor, compact_rest
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.index import check_shards
from idc_ray.store.layout import shard_of
from idc_ray.store.parts import commit_part, list_parts
from tests.pipeline.conftest import DIGEST, record

SHARDS = 2
NAMES = [f"{number}.png" for number in range(6)]
BY_SHARD = [[name for name in NAMES if shard_of(image_id(name), SHARDS) == shard] for shard in range(SHARDS)]


@pytest.fixture
def store(tmp_path: Path) -> StorageFolder:
    return resolve(str(tmp_path / "out"))


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Shards that tasks were asked to compact; tasks run at once, in this process."""
    asked: list[int] = []

    class Task:
        def remote(self, store: StorageFolder, digest: str, shard: int, count: int) -> dict[str, object]:
            asked.append(shard)
            return module._compact(store, digest, shard, count)

    monkeypatch.setattr(module, "_task", Task)
    monkeypatch.setattr(module, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(module.ray, "cluster_resources", dict)
    monkeypatch.setattr(module.ray, "wait", lambda refs, num_returns, timeout: (refs, []))
    monkeypatch.setattr(module.ray, "get", lambda ref: ref)
    return asked


def compactor(store: StorageFolder, unfinished: list[str], shards: int = SHARDS) -> Compactor:
    return Compactor(store, DIGEST, shards, pa.chunked_array([[image_id(name) for name in unfinished]], pa.string()))


def commit(store: StorageFolder, name: str) -> str:
    commit_part(store, DIGEST, [(record(name), [])])
    return image_id(name)


def shards(store: StorageFolder) -> list[int]:
    return [info.shard for info in check_shards(store)]


def test_the_names_fill_both_shards() -> None:
    assert all(len(names) >= 2 for names in BY_SHARD)


@pytest.mark.usefixtures("done")
def test_a_shard_is_written_with_its_last_image_and_not_before(store: StorageFolder) -> None:
    """Catches parts that pile up until the end, and a shard that is written again for each image."""
    one = compactor(store, NAMES)
    for name in BY_SHARD[1][:-1]:
        one.finished(commit(store, name))
    one.wait()
    assert shards(store) == []
    one.finished(commit(store, BY_SHARD[1][-1]))
    one.wait()
    assert shards(store) == [1]
    assert list_parts(store, DIGEST) == []


@pytest.mark.usefixtures("done")
def test_quarantined_images_count_as_finished(store: StorageFolder) -> None:
    """Catches a shard that waits indefinitely for an image that will never be done."""
    one = compactor(store, NAMES)
    for name in BY_SHARD[0][1:]:
        one.finished(commit(store, name))
    one.finished(image_id(BY_SHARD[0][0]))
    assert shards(store) == [0]


@pytest.mark.usefixtures("done")
def test_a_resumed_run_waits_only_for_what_is_left(store: StorageFolder) -> None:
    """Catches a resumed run that never completes the ranges that an earlier attempt began."""
    for name in BY_SHARD[0][:-1]:
        commit(store, name)
    one = compactor(store, BY_SHARD[0][-1:])
    one.finished(commit(store, BY_SHARD[0][-1]))
    assert shards(store) == [0]
    assert len(find_done(store, DIGEST)) == len(BY_SHARD[0])


def test_the_end_compacts_what_earlier_launches_left(store: StorageFolder) -> None:
    """Catches an attempt with nothing to do that leaves the parts of a killed one, and so never writes a manifest."""
    for name in NAMES:
        commit(store, name)
    compact_rest(store, DIGEST, SHARDS)
    assert shards(store) == [0, 1]
    assert list_parts(store, DIGEST) == []
    compact_rest(store, DIGEST, SHARDS)
    assert len(find_done(store, DIGEST)) == len(NAMES)


def test_the_end_repeats_a_compaction_that_was_killed(store: StorageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pending shard without parts that is never completed."""
    asked: list[int] = []
    monkeypatch.setattr(module, "list_pending", lambda store: [1])
    monkeypatch.setattr(module, "compact", lambda store, digest, shard, count: asked.append(shard))
    commit(store, BY_SHARD[0][0])
    compact_rest(store, DIGEST, SHARDS)
    assert asked == [0, 1]


def test_the_only_shard_of_a_small_run_needs_no_task(store: StorageFolder, done: list[int]) -> None:
    """Catches a process that is started for what takes a moment at the end."""
    one = compactor(store, NAMES, shards=1)
    for name in NAMES:
        one.finished(commit(store, name))
    one.wait()
    assert done == [] and shards(store) == []


def test_an_error_of_a_task_ends_the_job_as_what_it_is(store: StorageFolder, done: list[int]) -> None:
    """Catches a damaged part that is told as a traceback of Ray, or not at all."""
    one = compactor(store, BY_SHARD[0])
    for name in BY_SHARD[0]:
        commit(store, name)
    store.write(list_parts(store, DIGEST)[0], b"")
    for name in BY_SHARD[0]:
        one.finished(image_id(name))
    with pytest.raises(IdcError, match="not a complete part"):
        one.wait()


def test_a_task_that_is_lost_is_left_to_the_end(
    store: StorageFolder, done: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lost(ref: object) -> None:
        raise WorkerCrashedError

    monkeypatch.setattr(module.ray, "get", lost)
    one = compactor(store, BY_SHARD[0])
    for name in BY_SHARD[0]:
        one.finished(commit(store, name))
    one.wait()
    assert "is done at the end" in caplog.text


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_tasks_of_ray_compact_shards_beside_the_driver(store: StorageFolder) -> None:
    one = compactor(store, NAMES)
    for name in NAMES:
        one.finished(commit(store, name))
    one.wait()
    assert shards(store) == [0, 1] and not list_parts(store, DIGEST)
