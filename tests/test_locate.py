from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.locate import locate


@pytest.mark.parametrize("name", ["plain", "a b", "a#b", "a%20b", "ümläut", "what?", "x[1]", "-dash", "new\nline"])
def test_local_paths_are_taken_literally(tmp_path: Path, name: str) -> None:
    """Catches paths read as URIs: "#" as a fragment, "%20" as a space."""
    storage = locate(str(tmp_path / name))
    assert storage.path == str(tmp_path / name)
    assert storage.local
    assert locate(storage.uri).path == storage.path  # the recorded URI leads back


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("a/../b/").path == str(tmp_path / "b")
    assert locate("~/b").path == str(tmp_path / "b")
    assert locate("-b").path == str(tmp_path / "-b")


def test_file_uris_are_decoded() -> None:
    assert locate("file:///a%20b/c").path == "/a b/c"
    assert locate("file:///a b/#1").path == "/a b/#1"
    assert locate("file:///a/*.png").path == "/a/*.png"
    assert locate("file:///a/img?.png").path == "/a/img?.png"
    assert locate("file:///a/").uri == "file:///a"


def test_credentials_are_not_recorded() -> None:
    """Catches keys in run.json and in logs."""
    storage = locate("s3://AKIA:sec%2Fret@bucket/my images/*.png?region=eu-west-1&endpoint_override=host:9000")
    assert storage.path == "bucket/my images/*.png"
    assert isinstance(storage.filesystem, fs.S3FileSystem)
    assert storage.uri == "s3://bucket/my%20images/*.png?endpoint_override=host%3A9000"
    assert not storage.local


def test_an_opened_store_can_be_sent_to_workers() -> None:
    storage = pickle.loads(pickle.dumps(locate("s3://bucket/x?region=eu-west-1")))
    assert storage.path == "bucket/x"


@pytest.mark.parametrize(
    "text", ["", "  ", "nosuch://u:secret@host/x?key=secret", "file://relative/x", "s3://u:secret@/a"]
)
def test_what_cannot_be_opened_is_a_bad_request_without_its_secrets(text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        locate(text)
    assert "secret" not in str(caught.value)


def test_bytes_that_are_no_utf8_do_not_crash() -> None:
    assert locate(os.fsdecode(b"/caf\xe9")).uri == "file:///caf%5Cxe9"
