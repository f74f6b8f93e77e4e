from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from idc_ray.errors import IdcError
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.manifest import read_manifest, write_manifest
from idc_ray.store.quarantine import quarantine_image


def test_manifest_adds_up(store: StorageFolder, make: SimpleNamespace) -> None:
    for i, tiles in enumerate((2, 0, 1)):
        make.commit(store, f"{i}.png", tiles=tiles)
    quarantine_image(store, make.DIGEST, make.quarantine_entry("bad.png"))
    infos = [info for shard in range(2) if (info := compact(store, make.DIGEST, shard, 2)) is not None]
    manifest = write_manifest(store, make.DIGEST, 24, {"wall": 12.5}, expected_images=4)
    assert read_manifest(store) == manifest and manifest.shards == infos
    assert (manifest.images, manifest.rows, manifest.source_bytes) == (3, 3, 3000)
    assert manifest.ratio == pytest.approx(3 * 24**2 / (3 * 96 * 144)) and manifest.timing == {"wall": 12.5}
    assert manifest.bytes == sum(info.bytes for info in infos)
    for info in manifest.shards:
        data = store.read(info.file)
        assert data is not None and hashlib.sha256(data).hexdigest() == info.sha256
    assert [entry["source"] for entry in manifest.quarantined] == ["bad.png"]
    assert store.folders("parts") == [] or not store.is_local


def test_an_empty_run_has_a_manifest(store: StorageFolder, make: SimpleNamespace) -> None:
    assert write_manifest(store, make.DIGEST, 24, {}, expected_images=0).ratio == 0.0


def test_no_manifest_while_parts_are_left(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    with pytest.raises(IdcError, match="1 parts"):
        write_manifest(store, make.DIGEST, 24, {})
    assert read_manifest(store) is None


def test_a_missing_image_is_noticed(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    compact(store, make.DIGEST, 0, 1)
    with pytest.raises(IdcError, match="1 finished and 0 quarantined images, expected 2"):
        write_manifest(store, make.DIGEST, 24, {}, expected_images=2)


def test_an_image_that_was_done_after_all_is_not_listed_as_failed(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    quarantine_image(store, make.DIGEST, make.quarantine_entry("a.png"))
    compact(store, make.DIGEST, 0, 1)
    assert write_manifest(store, make.DIGEST, 24, {}, expected_images=1).quarantined == []


def test_damaged_manifest_is_named(store: StorageFolder) -> None:
    for text in (b"{", b'{"digest": "x"}'):
        store.write("manifest.json", text)
        with pytest.raises(IdcError, match=r"manifest\.json .*delete that file"):
            read_manifest(store)
