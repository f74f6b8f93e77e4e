from __future__ import annotations

from types import SimpleNamespace

import pytest

from idc_ray.errors import IdcError
from idc_ray.store import done as done_module
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.parts import list_parts


def test_index_and_parts_together_and_each_image_once(store: StorageFolder, make: SimpleNamespace) -> None:
    for i in range(5):
        make.commit(store, f"{i}.png", tiles=i % 2, source_bytes=100 + i, source_mtime_ns=2**60 + i)
    compact(store, make.DIGEST, 0, 2)
    compact(store, make.DIGEST, 1, 2)
    make.commit(store, "part.png", source_bytes=7)
    make.commit(store, "0.png", source_bytes=555, source_sha256="cd" * 32)  # redone: the part is what counts
    done = find_done(store, make.DIGEST)
    ids = [make.image_id(f"{i}.png") for i in range(5)]
    assert len(done) == 6 == len(list(done)) and set(done) == {*ids, make.image_id("part.png")}
    states = {row["image_id"]: list(row.values())[1:] for row in done.table.to_pylist()}
    assert states[ids[3]] == [103, 2**60 + 3, "ab" * 32]
    assert states[ids[0]] == [555, 1_700_000_000_123_456_789, "cd" * 32]
    assert done.in_parts == {ids[0], make.image_id("part.png")}
    assert states[make.image_id("part.png")][0] == 7


def test_a_part_that_is_compacted_while_it_is_read_is_no_error(
    store: StorageFolder, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its images are in the index by then, which is read afterwards."""
    make.commit(store, "a.png")
    names = list_parts(store, make.DIGEST)
    compact(store, make.DIGEST, 0, 1)
    monkeypatch.setattr(done_module, "list_parts", lambda *args: names)
    assert set(find_done(store, make.DIGEST)) == {make.image_id("a.png")}


def test_shards_of_another_run_are_refused(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    compact(store, make.DIGEST, 0, 1)
    with pytest.raises(IdcError, match="has digest d1, expected other"):
        find_done(store, "other")
