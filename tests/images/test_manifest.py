from __future__ import annotations

import hashlib
import json
import random

import pyarrow as pa
import pytest

from idc_ray.errors import BadRequest
from idc_ray.images import manifest as module
from idc_ray.images.manifest import MANIFEST_SCHEMA, Entry, ImageRef, build_manifest, image_id


def test_ids_are_stable_and_hexadecimal() -> None:
    """Catches ids that change between versions, platforms or processes (hash()): outputs could not be resumed."""
    assert image_id("a/b.png") == hashlib.sha256(b"a/b.png").hexdigest()[:16]
    assert image_id("a/b.png") == "88f7ec7982e1b5db"
    assert image_id("日本.png") == hashlib.sha256("日本.png".encode()).hexdigest()[:16]


def test_the_manifest_does_not_depend_on_the_order_of_the_listing() -> None:
    entries = [Entry(name, "/r/" + name, i) for i, name in enumerate(["b.png", "a/b.png", "a b.png", "é.png", "Z.png"])]
    expected = build_manifest(entries)
    for seed in range(5):
        shuffled = random.Random(seed).sample(entries, len(entries))
        assert build_manifest(shuffled).equals(expected)
    assert expected.schema == MANIFEST_SCHEMA
    assert expected["source"].to_pylist() == sorted(e.source for e in entries)


def test_ids_belong_to_their_rows() -> None:
    """Catches ids made before sorting."""
    table = build_manifest([Entry("z.png", "/z"), Entry("a.png", "/a")])
    assert [(row["image_id"], row["path"]) for row in table.to_pylist()] == [
        (image_id("a.png"), "/a"),
        (image_id("z.png"), "/z"),
    ]


def test_no_images_give_an_empty_table_of_the_schema() -> None:
    table = build_manifest([])
    assert table.num_rows == 0
    assert table.schema == MANIFEST_SCHEMA


def test_two_files_of_one_source_are_distinguished() -> None:
    """Catches an input that is refused for a name that is no UTF-8 and one that is spelled as the first is shown."""
    entries = [Entry("caf\\xe9", "/a/2"), Entry("caf\\xe9", "/a/1"), Entry("caf\\xe9~2", "/a/3"), Entry("b", "/a/4")]
    table = build_manifest(entries)
    assert {row["source"]: row["path"] for row in table.to_pylist()} == {
        "b": "/a/4", "caf\\xe9": "/a/1", "caf\\xe9~2": "/a/3", "caf\\xe9~3": "/a/2",
    }  # fmt: skip
    assert build_manifest(entries[::-1]).equals(table)
    assert table["source"].to_pylist() == sorted(table["source"].to_pylist())


def test_two_images_of_one_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an image silently taking the other's place. Ids are shortened here so that two collide."""
    monkeypatch.setattr(module, "image_id", lambda source: source[0] * 16)
    with pytest.raises(BadRequest, match=r"'a1\.png' and 'a2\.png'"):
        build_manifest([Entry("a1.png", "/1"), Entry("b.png", "/b"), Entry("a2.png", "/2")])


def test_a_ref_comes_from_a_row_through_json_and_back() -> None:
    table = build_manifest([Entry("a.png", "/a", 5, 6, "/lr", -1), Entry("p#3", "/p", -1, 7, None, 3, "image")])
    refs = [ImageRef.from_row(json.loads(json.dumps(row | {"batch": 1}))) for row in table.to_pylist()]
    assert refs[0] == ImageRef(image_id("a.png"), "a.png", "/a", 5, 6, "/lr", -1, None)
    assert refs[1] == ImageRef(image_id("p#3"), "p#3", "/p", -1, 7, None, 3, "image")


def test_a_row_without_a_column_is_an_error() -> None:
    row = build_manifest([Entry("a.png", "/a")]).to_pylist()[0]
    del row["lr_path"]
    with pytest.raises(KeyError, match="lr_path"):
        ImageRef.from_row(row)


def test_large_manifests_fit() -> None:
    """Catches a table that takes more than some 200 bytes an image."""
    table = build_manifest(Entry(f"folder/{i:07}.png", f"/data/set/folder/{i:07}.png", i, i) for i in range(50_000))
    assert table.num_rows == 50_000
    assert table.nbytes < 50_000 * 200
    assert isinstance(table, pa.Table)
