from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow import fs

from idc_ray.images.names import open_path, printable, shown, stored

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


def test_usual_paths_are_opened_by_the_filesystem(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    with open_path(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "a.txt") as file:
        assert file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        open_path(fs.LocalFileSystem(), str(tmp_path / "gone"))


def test_a_name_cannot_command_the_terminal_or_forge_a_line() -> None:
    """Catches escape sequences and line breaks of a file's name in a log."""
    assert printable("a\x1b[2J\nerror: done\x9b.png ü") == "a\\x1b[2J\\x0aerror: done\\x9b.png ü"
