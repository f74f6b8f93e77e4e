from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.filesystem import StorageFolder, resolve


def test_relative_path_does_not_depend_on_the_directory_an_actor_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = resolve("out")
    monkeypatch.chdir("/")
    store.write("a/b.json", b"{}")
    assert (tmp_path / "out" / "a" / "b.json").exists()


def test_file_uri_with_odd_characters_is_the_same_folder_as_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "my photos ü#1"
    uri = folder.as_uri()
    assert resolve(uri).root == str(folder) == resolve(str(folder)).root
    assert resolve(uri.replace("file://", "file://localhost")).root == str(folder)


@pytest.mark.parametrize("uri", ["", "  ", "wrong://x/y", "file://host/x", "s3://bucket/x?regoin=eu"])
def test_bad_uri_is_a_bad_request(uri: str) -> None:
    with pytest.raises(BadRequest, match="expected"):
        resolve(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:s3cr3t@bucket/run?region=us-east-1",
        "s3://AKIAKEY:s3cr3t%2Fx@bucket/run?region=us-east-1&secret=s3cr3t",
    ],
)
def test_credentials_appear_in_no_message(uri: str) -> None:
    if "secret=" in uri:
        with pytest.raises(BadRequest) as error:
            resolve(uri)
        assert error.value.__cause__ is None and error.value.__suppress_context__  # its text quotes the URI
        text = str(error.value)
    else:
        text = resolve(uri).shown("run.json")
    assert "s3cr3t" not in text and "AKIAKEY" not in text and "bucket/run" in text


def test_store_can_be_pickled_into_an_actor(tmp_path: Path) -> None:
    store = pickle.loads(pickle.dumps(resolve(str(tmp_path / "out"))))
    store.write("x", b"1")
    assert (tmp_path / "out" / "x").read_bytes() == b"1"
    assert len(pickle.dumps(resolve("s3://bucket/run?region=us-east-1"))) < 10_000


def test_check_writable_leaves_nothing_behind(store: StorageFolder) -> None:
    store.check_writable()
    assert store.files("") == []


def test_output_below_a_file_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadRequest, match="cannot write to output .*choose another --output"):
        resolve(str(tmp_path / "file" / "out")).check_writable()


def test_object_store_that_refuses_writes_is_refused_with_the_fix(objects: Any, make: SimpleNamespace) -> None:
    objects.fail_at = 0
    with pytest.raises(BadRequest, match="bucket exists"):
        StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out").check_writable()


def test_json_keeps_names_that_are_not_utf8(store: StorageFolder) -> None:
    value = {"source": "caf\udce9/ü.png"}
    store.write_json("x.json", value)
    assert store.read_json("x.json", "") == value


@pytest.mark.parametrize("text", [b"", b'{"a": 1', b"[]", b"\xff"])
def test_torn_json_names_the_file_and_the_fix(store: StorageFolder, text: bytes) -> None:
    store.write("x.json", text)
    with pytest.raises(IdcError, match=r"out/x\.json .*do this"):
        store.read_json("x.json", "do this")


def test_listing_distinguishes_files_from_folders(store: StorageFolder) -> None:
    for name in ("top", "a/one", "a/two", "a/b/three"):
        store.write(name, b"")
    assert store.files("a") == ["one", "two"]
    assert store.folders("a") == ["b"]
    assert store.folders("") == ["a"]
    assert store.files("nowhere") == store.folders("nowhere") == []
