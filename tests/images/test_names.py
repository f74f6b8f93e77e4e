from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow import fs

from idc_ray.images.names import folder_of, is_there, open_path, shown, stored
from idc_ray.redact import printable

LATIN = b"caf\xe9 #1.png"


def test_usual_names_stay_as_they_are() -> None:
    for name in ("a.png", "a b.png", "日本.png", "100%.png", "line\nbreak.png", "back\\slash.png"):
        assert shown(name) == name
        assert stored("/x/" + name) == "/x/" + name


def test_a_name_that_is_no_utf8_is_shown_and_found_again(tmp_path: Path) -> None:
    """Catches a listing that dies of a name from an old archive (pyarrow's does)."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/" + LATIN)
    try:
        Path(path).write_bytes(b"content")
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    kept = stored(path)
    kept.encode()  # valid
    assert shown(os.fsdecode(LATIN)) == "caf\\xe9 #1.png"
    with open_path(fs.LocalFileSystem(), kept) as file:
        assert file.read() == b"content"
    assert is_there(fs.LocalFileSystem(), kept) and not is_there(fs.LocalFileSystem(), kept + "x")
    assert is_there(fs.LocalFileSystem(), folder_of(kept))


def test_the_folder_of_a_stored_path_is_there_too(tmp_path: Path) -> None:
    local = fs.LocalFileSystem()
    assert folder_of(str(tmp_path / "a.png")) == str(tmp_path)
    assert folder_of("/a.png") == folder_of(stored("/\udce9.png")) == "/"
    assert is_there(local, str(tmp_path)) and not is_there(local, str(tmp_path / "a.png"))


def test_usual_paths_are_opened_by_the_filesystem(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    with open_path(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "a.txt") as file:
        assert file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        open_path(fs.LocalFileSystem(), str(tmp_path / "gone"))


def test_a_name_cannot_command_the_terminal_or_forge_a_line() -> None:
    """Catches escape sequences and line breaks of a file's name in a log."""
    assert printable("a\x1b[2J\nerror: done\x9b.png ü") == "a\\x1b[2J\\x0aerror: done\\x9b.png ü"
