from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from idc_ray.errors import IdcError
from idc_ray.store import Store, rows_from_table
from idc_ray.store.layout import part_name


def test_part_gives_back_what_was_committed_and_a_second_commit_is_harmless(
    store: Store, make: SimpleNamespace
) -> None:
    make.commit(store, "a.png")
    name = part_name(make.DIGEST, make.image_id("a.png"))
    before = store.storage.read(name)
    make.commit(store, "a.png")
    assert store.storage.read(name) == before
    part = store.read_part(make.DIGEST, make.image_id("a.png"))
    assert part.record == make.record("a.png") and rows_from_table(part.table) == make.rows("a.png")


def test_image_without_tiles_is_done(store: Store, make: SimpleNamespace) -> None:
    """Else a ratio below one tile an image would never finish."""
    make.commit(store, "empty.png", 0)
    empty = make.image_id("empty.png")
    assert store.list_parts(make.DIGEST) == {empty} and empty in store.done(make.DIGEST)
    assert store.read_part(make.DIGEST, empty).table.num_rows == 0


def test_parts_of_another_configuration_are_not_seen(store: Store, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    assert store.list_parts("other") == set() and len(store.done("other")) == 0


@pytest.mark.parametrize(
    ("tiles", "change"), [(3, {}), (2, {"tile_index": 0}), (2, {"image_id": "0" * 16}), (2, {"config_digest": "other"})]
)
def test_rows_that_do_not_fit_the_record_are_refused(
    store: Store, make: SimpleNamespace, tiles: int, change: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        store.commit_part(make.DIGEST, make.record("a.png", tiles), make.rows("a.png", 2, **change))
    assert store.list_parts(make.DIGEST) == set()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text" * 10])
def test_damaged_part_is_named_with_the_fix(
    store: Store, make: SimpleNamespace, damage: Callable[[bytes], bytes]
) -> None:
    make.commit(store, "a.png")
    name = part_name(make.DIGEST, make.image_id("a.png"))
    store.storage.write(name, damage(store.storage.read(name)))
    for read in (
        lambda: store.read_part(make.DIGEST, make.image_id("a.png")),
        lambda: store.done(make.DIGEST)[make.image_id("a.png")],
    ):
        with pytest.raises(IdcError, match=r"parquet is not a whole part .*delete that file"):
            read()


def test_part_under_the_name_of_another_image_is_refused(store: Store, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    data = store.storage.read(part_name(make.DIGEST, make.image_id("a.png")))
    store.storage.write(part_name(make.DIGEST, make.image_id("b.png")), data)
    with pytest.raises(IdcError, match=make.image_id("a.png")):
        store.read_part(make.DIGEST, make.image_id("b.png"))


def test_missing_part_is_file_not_found(store: Store, make: SimpleNamespace) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_part(make.DIGEST, make.image_id("a.png"))


def test_twenty_thousand_parts_are_listed_in_seconds_without_opening_one(tmp_path: Path, make: SimpleNamespace) -> None:
    """The empty files would fail to open; a listing that is quadratic takes minutes."""
    ids = {hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(20_000)}
    for prefix in range(256):
        (tmp_path / "parts" / make.DIGEST / f"{prefix:02x}").mkdir(parents=True)
    for image_id in ids:
        os.close(os.open(f"{tmp_path}/{part_name(make.DIGEST, image_id)}", os.O_CREAT))
    start = time.monotonic()
    done = Store.open(str(tmp_path)).done(make.DIGEST)
    assert time.monotonic() - start < 5
    assert done.in_parts == ids and len(done) == len(ids)
