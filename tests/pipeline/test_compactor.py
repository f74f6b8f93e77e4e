from __future__ import annotations

from pathlib import Path

import pytest

from idc_ray.images import image_id
from idc_ray.pipeline import compactor as module
from idc_ray.pipeline.compactor import Compactor
from idc_ray.store import check_shards, commit_part, find_done, list_parts, shard_of
from idc_ray.store.filesystem import StorageFolder, resolve
from tests.pipeline.conftest import DIGEST, record

SHARDS = 2
NAMES = [f"{number}.png" for number in range(6)]
BY_SHARD = [[name for name in NAMES if shard_of(image_id(name), SHARDS) == shard] for shard in range(SHARDS)]


@pytest.fixture
def store(tmp_path: Path) -> StorageFolder:
    return resolve(str(tmp_path / "out"))


def compactor(store: StorageFolder, unfinished: list[str]) -> Compactor:
    return Compactor(store, DIGEST, SHARDS, [image_id(name) for name in unfinished])


def commit(store: StorageFolder, name: str) -> str:
    commit_part(store, DIGEST, record(name), [])
    return image_id(name)


def shards(store: StorageFolder) -> list[int]:
    return [info.shard for info in check_shards(store)]


def test_the_names_fill_both_shards() -> None:
    assert all(len(names) >= 2 for names in BY_SHARD)


def test_a_shard_is_written_with_its_last_image_and_not_before(store: StorageFolder) -> None:
    """Catches parts that pile up until the end, and a shard that is written again for each image."""
    one = compactor(store, NAMES)
    for name in BY_SHARD[1][:-1]:
        one.finished(commit(store, name))
    assert shards(store) == []
    one.finished(commit(store, BY_SHARD[1][-1]))
    assert shards(store) == [1]
    assert list_parts(store, DIGEST) == set()


def test_quarantined_images_count_as_finished(store: StorageFolder) -> None:
    """Catches a shard that waits indefinitely for an image that will never be done."""
    one = compactor(store, NAMES)
    for name in BY_SHARD[0][1:]:
        one.finished(commit(store, name))
    one.finished(image_id(BY_SHARD[0][0]))
    assert shards(store) == [0]


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
    one = compactor(store, [])
    one.finish()
    assert shards(store) == [0, 1]
    assert list_parts(store, DIGEST) == set()
    one.finish()
    assert len(find_done(store, DIGEST)) == len(NAMES)


def test_the_end_repeats_a_compaction_that_was_killed(store: StorageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pending shard without parts that is never completed."""
    asked: list[int] = []
    monkeypatch.setattr(module, "list_pending", lambda store: [1])
    monkeypatch.setattr(module, "compact", lambda store, digest, shard, count: asked.append(shard))
    commit(store, BY_SHARD[0][0])
    compactor(store, []).finish()
    assert asked == [0, 1]
