from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from idc_ray.errors import IdcError
from idc_ray.store import commit_part, find_done, list_parts, read_part, rows_from_table
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.layout import part_name


def test_part_gives_back_what_was_committed_and_a_second_commit_is_harmless(
    store: StorageFolder, make: SimpleNamespace
) -> None:
    make.commit(store, "a.png")
    name = part_name(make.DIGEST, make.image_id("a.png"))
    before = store.read(name)
    make.commit(store, "a.png")
    assert store.read(name) == before
    part = read_part(store, make.DIGEST, make.image_id("a.png"))
    assert part.record == make.record("a.png") and rows_from_table(part.table) == make.rows("a.png")


def test_image_without_tiles_is_done(store: StorageFolder, make: SimpleNamespace) -> None:
    """Else a ratio below one tile an image would never finish."""
    make.commit(store, "empty.png", 0)
    empty = make.image_id("empty.png")
    assert list_parts(store, make.DIGEST) == {empty} and empty in find_done(store, make.DIGEST)
    assert read_part(store, make.DIGEST, empty).table.num_rows == 0


def test_parts_of_another_configuration_are_not_seen(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    assert list_parts(store, "other") == set() and len(find_done(store, "other")) == 0


@pytest.mark.parametrize(
    ("tiles", "change"), [(3, {}), (2, {"tile_index": 0}), (2, {"image_id": "0" * 16}), (2, {"config_digest": "other"})]
)
def test_rows_that_do_not_fit_the_record_are_refused(
    store: StorageFolder, make: SimpleNamespace, tiles: int, change: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        commit_part(store, make.DIGEST, make.record("a.png", tiles), make.rows("a.png", 2, **change))
    assert list_parts(store, make.DIGEST) == set()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text" * 10])
def test_damaged_part_is_named_with_the_fix(
    store: StorageFolder, make: SimpleNamespace, damage: Callable[[bytes], bytes]
) -> None:
    make.commit(store, "a.png")
    name = part_name(make.DIGEST, make.image_id("a.png"))
    store.write(name, damage(store.read(name)))
    for read in (
        lambda: read_part(store, make.DIGEST, make.image_id("a.png")),
        lambda: find_done(store, make.DIGEST)[make.image_id("a.png")],
    ):
        with pytest.raises(IdcError, match=r"parquet is not a complete part .*delete that file"):
            read()


def test_part_under_the_name_of_another_image_is_refused(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    data = store.read(part_name(make.DIGEST, make.image_id("a.png")))
    store.write(part_name(make.DIGEST, make.image_id("b.png")), data)
    with pytest.raises(IdcError, match=make.image_id("a.png")):
        read_part(store, make.DIGEST, make.image_id("b.png"))


def test_missing_part_is_file_not_found(store: StorageFolder, make: SimpleNamespace) -> None:
    with pytest.raises(FileNotFoundError):
        read_part(store, make.DIGEST, make.image_id("a.png"))


def test_twenty_thousand_parts_are_listed_in_seconds_without_opening_one(tmp_path: Path, make: SimpleNamespace) -> None:
    """The empty files would fail to open; a listing that is quadratic takes minutes."""
    ids = {hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(20_000)}
    for prefix in range(256):
        (tmp_path / "parts" / make.DIGEST / f"{prefix:02x}").mkdir(parents=True)
    for image_id in ids:
        os.close(os.open(f"{tmp_path}/{part_name(make.DIGEST, image_id)}", os.O_CREAT))
    start = time.monotonic()
    done = find_done(resolve(str(tmp_path)), make.DIGEST)
    assert time.monotonic() - start < 5
    assert done.in_parts == ids and len(done) == len(ids)
