from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from skimage.data import chelsea, coffee

from idc_ray.errors import IdcError
from idc_ray.images import encode_png, find_images
from idc_ray.pipeline import duplicates
from idc_ray.pipeline.duplicates import without_copies
from idc_ray.pipeline.inputs import find_input
from idc_ray.regular_files import open_regular
from tests.pipeline.conftest import small_config

LIMIT = 1_000_000


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


END = b"e" * 5000
FILES = {
    "b.png": b"1" + END, "a/z.png": b"1" + END, "c.png": b"1" + END,  # equal
    "d.png": b"2" + END,  # of their size and end
    "e.png": b"2" * 5001, "f.png": b"3" * 5001, "g.png": b"4" + b"3" * 5000,  # of their size; the last two have one end
    "h.png": b"x", "i.png": b"x",
}  # fmt: skip


def test_the_first_by_name_of_equal_images_stays(tmp_path: Path) -> None:
    """Catches other files of the same size, or with the same end, that are lost; and a choice by time or order."""
    found = without_copies(find_images(str(write(tmp_path, FILES))), LIMIT)
    left = ["a/z.png", "d.png", "e.png", "f.png", "g.png", "h.png"]
    assert found.manifest["source"].to_pylist() == left
    assert found.duplicates == {"images": 3, "groups": [["a/z.png", "b.png", "c.png"], ["h.png", "i.png"]]}


def test_files_of_unique_size_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second pass over the whole input."""
    files = {f"{size}.png": b"x" * size for size in range(1, 20)} | {"a.png": b"y" * 100, "b.png": b"z" * 100}
    listing = find_images(str(write(tmp_path, files)))
    monkeypatch.setattr(duplicates, "read_encoded", lambda *_: pytest.fail("was read"))
    opened = []
    monkeypatch.setattr(duplicates, "open_path", lambda _, path: opened.append(path) or open_regular(path))
    assert without_copies(listing, LIMIT).manifest.equals(listing.manifest)
    assert sorted(map(os.path.basename, opened)) == ["a.png", "b.png"]


def test_images_that_cannot_be_read_stay(tmp_path: Path) -> None:
    folder = write(tmp_path, {"a.png": b"same", "b.png": b"same", "c.png": b"same"})
    listing = find_images(str(folder))
    (folder / "b.png").unlink()
    assert without_copies(listing, LIMIT).manifest["source"].to_pylist() == ["a.png", "b.png"]


def test_pairs_are_equal_if_both_images_are(tmp_path: Path) -> None:
    write(tmp_path / "hr", {"a.png": b"1", "b.png": b"1", "c.png": b"1"})
    write(tmp_path / "lr", {"a.png": b"5", "b.png": b"6", "c.png": b"5"})
    listing = find_images(str(tmp_path / "hr"), lr_input=str(tmp_path / "lr"))
    assert without_copies(listing, LIMIT).manifest["source"].to_pylist() == ["a.png", "b.png"]


def test_rows_of_parquet(tmp_path: Path) -> None:
    values = [{"bytes": data, "path": None} for data in (b"a", b"b", b"a", None, None, b"b")]
    pq.write_table(pa.table({"image": values}), tmp_path / "x.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": [b"b", b"c"]}), tmp_path / "y.parquet")
    found = without_copies(find_images(str(tmp_path)), LIMIT)
    sources = ["x.parquet#0", "x.parquet#1", "x.parquet#3", "x.parquet#4", "y.parquet#1"]
    assert found.manifest["source"].to_pylist() == sources


def test_copies_are_left_out_on_request_only(tmp_path: Path) -> None:
    write(tmp_path / "in", FILES)
    config = small_config(input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    assert find_input(config).manifest.num_rows == 9
    skipping = config.model_copy(update={"duplicates": "skip"})
    assert find_input(skipping).manifest.num_rows == 6
    assert skipping.digest("0" * 64) != config.digest("0" * 64)


def test_frames_that_look_like_another_of_their_clip_are_left_out(tmp_path: Path) -> None:
    """Catches frames compared with other clips, unreadable ones that vanish, and a digest without the setting."""
    photo = chelsea()
    brighter = encode_png((photo * 0.9 + 20).astype("uint8"))
    files = {"a/1.png": encode_png(photo), "a/2.png": encode_png(coffee()), "a/3.png": brighter, "b/1.png": brighter}
    write(tmp_path / "in", files | {"b/2.png": brighter, "b/3.png": b"torn"})
    config = small_config(input=str(tmp_path / "in"), output=str(tmp_path / "out"), clips="folder")
    found = find_input(config)
    assert found.manifest["source"].to_pylist() == ["a/1.png", "a/2.png", "b/1.png", "b/3.png"]
    assert found.duplicates == {"images": 2, "groups": [["a/1.png", "a/3.png"], ["b/1.png", "b/2.png"]]}
    both = find_input(config.model_copy(update={"duplicates": "skip"}))
    assert both.manifest["source"].to_pylist() == ["a/1.png", "a/2.png", "b/3.png"]
    assert both.duplicates is not None and both.duplicates["images"] == 3
    assert config.digest("0" * 64) != config.model_copy(update={"clips": None}).digest("0" * 64)


def test_an_outage_is_no_reason_to_keep_copies(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches copies that are condensed because the store was down when they were compared."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("idc_ray.images.instance._RETRY_AFTER_S", (0.0,))
    for name in "abc":
        s3.put("bucket", f"copies/{name}.png", b"same")
    listing = find_images(s3.uri("bucket/copies"))
    s3.fault = lambda request: "AccessDenied" if request.method == "GET" and request.name.endswith("png") else None
    with pytest.raises(IdcError, match=r"cannot access the input s3://bucket/copies.*same command"):
        without_copies(listing, LIMIT)
    s3.fault = lambda request: None
    assert without_copies(listing, LIMIT).manifest.num_rows == 1
