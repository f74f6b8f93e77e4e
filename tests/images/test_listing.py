from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.images.listing import has_wildcard, matches, split_pattern, walk
from idc_ray.locate import StoragePath, locate


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def sources(storage: StoragePath, depth: int | None = None) -> list[str]:
    return sorted(entry.source for entry in walk(storage, depth))


def store(root: Path) -> StoragePath:
    """The folder as an object store: anything but a LocalFileSystem is one."""
    return StoragePath(fs.SubTreeFileSystem(str(root), fs.LocalFileSystem()), "data", "mock://data")


ODD = [
    "a b.png",
    "ü/日本.png",
    "#1.png",
    "line\nbreak.png",
    "-dash.png",
    "100%.png",
    "x/1.png",
    "y/1.png",
    "q?.png",
    "[1].png",
]


def test_a_disk_and_a_store_list_alike(tmp_path: Path) -> None:
    """Catches hidden files, sources that differ between the two (ids would), names changed by quoting."""
    touch(tmp_path / "data", *ODD, ".hidden.png", ".git/a.png", "x/.thumbs/b.png")
    local = {e.source: e for e in walk(locate(str(tmp_path / "data")))}
    other = {e.source: e for e in walk(store(tmp_path))}
    assert sorted(local) == sorted(other) == sorted(ODD)
    for name in ODD:
        assert local[name].size == other[name].size == len(name.encode())
        assert local[name].mtime_ns == other[name].mtime_ns == (tmp_path / "data" / name).stat().st_mtime_ns
        assert local[name].path == str(tmp_path / "data" / name)
        assert other[name].path == f"data/{name}"


@pytest.mark.parametrize("depth", [1, 2, 3, None])
def test_depth_counts_names(tmp_path: Path, depth: int | None) -> None:
    touch(tmp_path / "data", "1.png", "a/2.png", "a/b/3.png", "a/b/c/4.png")
    expected = ["1.png", "a/2.png", "a/b/3.png", "a/b/c/4.png"][: depth or 4]
    assert sources(locate(str(tmp_path / "data")), depth) == expected
    assert sources(store(tmp_path), depth) == expected


@pytest.mark.timeout(20)
def test_loops_of_links_end_and_lose_nothing(tmp_path: Path) -> None:
    """Catches endless recursion, an image listed by two names, and a link that renames a folder's images."""
    touch(tmp_path / "in", "z/1.png", "y/2.png")
    touch(tmp_path / "out", "3.png")
    for i in range(20):  # each leads everywhere: without memory of folders entered, 20! paths
        (tmp_path / "in" / "z" / f"loop{i}").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "a_link").symlink_to(tmp_path / "in" / "z")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "back").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "in").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "one.png").symlink_to(tmp_path / "out" / "3.png")
    found = sources(locate(str(tmp_path / "in")))
    assert found == sorted(["z/1.png", "y/2.png", "one.png", found[0]])
    assert found[0] in ("away/3.png", "back/3.png")
    assert found == sources(locate(str(tmp_path / "in")))


@pytest.mark.timeout(20)
def test_broken_links_are_listed_and_pipes_are_not(tmp_path: Path) -> None:
    """Catches an image lost without a word, and a read of a pipe that never ends."""
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert sorted((e.source, e.size) for e in walk(locate(str(tmp_path)))) == [("gone.png", -1), ("self.png", -1)]


def test_names_that_are_no_utf8_are_listed(tmp_path: Path) -> None:
    """Catches the UnicodeDecodeError of pyarrow's own listing."""
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    assert sources(locate(str(tmp_path))) == ["caf\\xe9.png"]


def test_a_folder_that_cannot_be_listed_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="cannot list"):
        list(walk(locate(str(tmp_path / "none"))))


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.png", ["a.png", "a b.png", "new\nline.png"], ["a/b.png", "a.jpg", "a.png.txt"]),
        ("**/*.png", ["a.png", "a/b.png", "a/b/c.png"], ["a.jpg"]),
        ("**", ["a.png", "a/b.png"], []),
        ("a/**", ["a/b.png", "a/b/c.png"], ["b/a.png", "a"]),
        ("a/**/b.png", ["a/b.png", "a/x/b.png", "a/x/y/b.png"], ["ab.png", "a/xb.png"]),
        ("*/x.png", ["a/x.png"], ["x.png", "a/b/x.png"]),
        ("img_?.png", ["img_1.png"], ["img_.png", "img_12.png", "img_/.png"]),
        ("[ab]1.png", ["a1.png", "b1.png"], ["c1.png", "1.png"]),
        ("[!ab]1.png", ["c1.png"], ["a1.png", "/1.png"]),
        ("[0-9]*.png", ["1.png", "12.png"], ["a1.png"]),
        ("a.b+(c)*", ["a.b+(c)", "a.b+(c)d"], ["axb+(c)", "a.bb(c)"]),
        ("x[.png", ["x[.png"], ["x.png"]),
        ("[z-a].png", [], ["z.png", "a.png"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    assert [name for name in yes if not matches(name, pattern)] == []
    assert [name for name in no if matches(name, pattern)] == []


def test_patterns_are_split_at_the_first_wildcard() -> None:
    assert split_pattern("/a/b/*/c/*.png") == ("/a/b", "*/c/*.png")
    assert split_pattern("bucket/x?.png") == ("bucket", "x?.png")
    assert split_pattern("/*.png") == ("/", "*.png")
    assert has_wildcard("/a/[1]")
    assert not has_wildcard("/a/{1}")


def test_a_folder_that_is_left_out_of_a_store_has_no_neighbours(tmp_path: Path) -> None:
    """Catches an output in a bucket that becomes input, and a folder next to it whose name begins alike."""
    touch(tmp_path, "data/a.png", "data/out/gallery.png", "data/out-of-town/b.png")
    storage = store(tmp_path)
    out = StoragePath(storage.filesystem, "data/out", "mock://data/out")
    assert sorted(e.source for e in walk(storage, without=out)) == ["a.png", "out-of-town/b.png"]
    elsewhere = StoragePath(fs.LocalFileSystem(), "data/out", "file:///data/out")
    assert len(list(walk(storage, without=elsewhere))) == 3
