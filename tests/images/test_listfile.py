from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.images.listfile import read_list
from idc_ray.locate import StoragePath, locate


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("lists/a.png", "lists/sub/b c.png", "lists/#1.png", "other/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def listed(root: Path, text: str | bytes) -> dict[str, str]:
    path = root / "lists" / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {entry.source: entry.path for entry in read_list(locate(str(path)))}


def test_lines_are_relative_to_the_lists_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches paths relative to where the command runs; comments and blank lines; Windows line ends and its BOM."""
    monkeypatch.chdir("/")
    found = listed(root, "\ufeffa.png\r\n\n  \n# a comment\nsub/b c.png\n./#1.png")
    assert found == {name: str(root / "lists" / name) for name in ("a.png", "sub/b c.png", "#1.png")}


def test_sources_are_portable_and_never_escape(root: Path) -> None:
    """Catches "../x" or "/x" in a source: whoever derives a file name from it would write outside the output."""
    found = listed(root, f"sub/../a.png\n../other/d.png\n{root}/lists/sub/b c.png\n")
    assert found == {
        "a.png": str(root / "lists/a.png"),
        "@up/other/d.png": str(root / "other/d.png"),
        f"@root{root}/lists/sub/b c.png": str(root / "lists/sub/b c.png"),
    }
    for source in found:
        assert not source.startswith("/")
        assert ".." not in source.split("/")


def test_no_two_lines_have_one_source(root: Path) -> None:
    """Catches a list that is refused as a whole for one odd line: two slashes, or a folder that is called @up."""
    for name in ("lists/@up/other/d.png", "lists/@@up/a.png", "lists/@root/a.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_bytes(b"x")
    lines = [
        "../other/d.png",
        "@up/other/d.png",
        "@@up/a.png",
        "@root/a.png",
        f"{root}/lists/a.png",
        f"/{root}/lists/a.png",
    ]
    found = listed(root, "\n".join(lines))
    assert list(found) == [
        "@up/other/d.png", "@@up/other/d.png", "@@@up/a.png", "@@root/a.png", f"@root{root}/lists/a.png",
    ]  # fmt: skip


def test_an_image_named_again_counts_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    found = listed(root, f"a.png\n./a.png\n{root}/lists/a.png\nsub/b c.png\n")
    assert list(found) == ["a.png", "sub/b c.png"]
    assert "ignored 2 lines of the list" in caplog.text


def test_sizes_are_known_and_one_missing_file_is_kept(root: Path) -> None:
    path = root / "lists" / "train.txt"
    path.write_text("gone.png\na.png\n")
    entries = read_list(locate(str(path)))
    assert {e.source: e.size for e in entries} == {"gone.png": -1, "a.png": len("lists/a.png")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no.png\nnot/this.png\n", "none of the 2 paths"),
        ("a.png\nsub\n", "names the folder"),
        ("s3://bucket/a.png\n", "names the URI"),
        (b"caf\xe9.png\n", "not UTF-8"),
        (b"a\0.png\n", "NUL"),
    ],
)
def test_what_a_list_may_not_say(root: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        listed(root, text)


def test_lists_in_a_store(root: Path) -> None:
    """No request is made for each path: a million requests would take hours."""
    (root / "lists" / "train.txt").write_text("sub/b c.png\nelsewhere.png\n../other/d.png")
    storage = StoragePath(
        fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()), "lists/train.txt", "mock://lists/train.txt"
    )
    entries = read_list(storage)
    assert [(e.source, e.path, e.size) for e in entries] == [
        ("sub/b c.png", "lists/sub/b c.png", -1),
        ("elsewhere.png", "lists/elsewhere.png", -1),
        ("@up/other/d.png", "other/d.png", -1),
    ]
    (root / "lists" / "train.txt").write_text("/lists/a.png")
    with pytest.raises(BadRequest, match="relative to the list"):
        read_list(storage)


@pytest.mark.parametrize("line", ["x" * 5000 + ".png", "a/" * 3000 + "b.png"])
def test_a_name_longer_than_any_file_has_costs_only_itself(root: Path, line: str) -> None:
    """Catches the operating system's refusal of one line that ends the listing of all the others."""
    found = listed(root, f"{line}\na.png\n")
    assert "a.png" in found and len(found) == 2


def test_climbing_above_the_root_does_not_leave_the_sources(root: Path) -> None:
    found = listed(root, "../" * 40 + "etc/passwd\na.png\n")
    (source,) = set(found) - {"a.png"}
    assert not {"..", ""} & set(source.split("/"))
