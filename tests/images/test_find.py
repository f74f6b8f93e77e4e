from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from idc_ray.errors import BadRequest
from idc_ray.images import find as module
from idc_ray.images.find import IMAGE_ENDINGS, ImageListing, find_images, output_inside
from idc_ray.images.manifest import MANIFEST_SCHEMA, image_id
from idc_ray.locate import StoragePath


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "in"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"image": pa.array([b"1", b"2"])}), path)


def sources(listing: ImageListing) -> list[str]:
    return listing.manifest["source"].to_pylist()


def test_a_folder_is_searched_to_its_bottom(root: Path) -> None:
    """Catches images of upper-case endings missed, and others counted as images."""
    touch(root, "b.PNG", "a/1.jpg", "a/b/1.jpg", "notes.txt", "a/README", "x.png.bak", ".hidden.png", "data.parquet")
    listing = find_images(str(root))
    assert sources(listing) == ["a/1.jpg", "a/b/1.jpg", "b.PNG"]
    assert listing.ignored == 4
    assert listing.uri == root.as_uri()
    assert listing.manifest.schema == MANIFEST_SCHEMA


@pytest.mark.parametrize("ending", sorted(IMAGE_ENDINGS))
def test_every_ending_is_found_in_a_folder_and_alone(root: Path, ending: str) -> None:
    touch(root, f"a.{ending}")
    assert sources(find_images(str(root))) == [f"a.{ending}"]
    assert sources(find_images(str(root / f"a.{ending}"))) == [f"a.{ending}"]


def test_ids_do_not_depend_on_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches absolute paths in ids: a moved folder, or one mounted elsewhere on a worker, would start again."""
    for storage in ("one", "two/deep"):
        touch(tmp_path / storage, "x/1.png", "y/1.png")
    monkeypatch.chdir(tmp_path)
    one, two = find_images("one"), find_images(str(tmp_path / "two/deep/"))
    assert one.manifest["image_id"].to_pylist() == two.manifest["image_id"].to_pylist()
    assert one.manifest["image_id"].to_pylist() == [image_id("x/1.png"), image_id("y/1.png")]
    assert sources(find_images("one/*/*.png")) == sources(one)


def test_odd_names_survive(root: Path) -> None:
    names = sorted(
        ["a b.png", "日本.png", "#1.png", "line\nbreak.png", "-rf.png", "100%25.png", "q?.png", 'it\'s "it".png']
    )
    touch(root, *names)
    listing = find_images(str(root))
    assert sources(listing) == names
    assert len(set(listing.manifest["image_id"].to_pylist())) == len(names)
    for row in listing.manifest.to_pylist():
        with listing.filesystem.open_input_file(row["path"]) as file:
            assert file.read() == b"x"


def test_a_folder_with_wildcards_in_its_name_is_a_folder(root: Path) -> None:
    touch(root / "set[1]*", "a.png")
    assert sources(find_images(str(root / "set[1]*"))) == ["a.png"]


def test_globs(root: Path) -> None:
    touch(root, "a/1.png", "a/2.jpg", "a/b/3.png", "4.png", "a/5.txt", "a/.6.png")
    assert sources(find_images(f"{root}/a/*.png")) == ["1.png"]
    assert sources(find_images(f"{root}/**/*.png")) == ["4.png", "a/1.png", "a/b/3.png"]
    every = find_images(f"{root}/a/*")
    assert (sources(every), every.ignored) == (["1.png", "2.jpg"], 1)
    with pytest.raises(BadRequest, match="no images match the pattern"):
        find_images(f"{root}/*.webp")
    with pytest.raises(BadRequest, match="of the pattern"):
        find_images(f"{root}/none/*.png")


def test_a_list_file(root: Path) -> None:
    touch(root, "b.png", "a/odd")
    (root / "train.lst").write_text("b.png\na/odd\nb.png\n")
    listing = find_images(str(root / "train.lst"))
    assert (sources(listing), listing.ignored) == (["a/odd", "b.png"], 0)


def test_one_image(root: Path) -> None:
    touch(root, "a.png", "b.png")
    row = find_images(str(root / "a.png")).manifest.to_pylist()
    assert [(r["source"], r["size"], r["row"]) for r in row] == [("a.png", 1, -1)]
    assert row[0]["mtime_ns"] == (root / "a.png").stat().st_mtime_ns


def test_parquet_file_folder_and_glob(root: Path) -> None:
    parquet(root / "x/a.parquet")
    parquet(root / "b.parquet")
    assert sources(find_images(str(root / "b.parquet"))) == ["b.parquet#0", "b.parquet#1"]
    expected = ["b.parquet#0", "b.parquet#1", "x/a.parquet#0", "x/a.parquet#1"]
    assert sources(find_images(str(root))) == expected
    assert sources(find_images(f"{root}/**/*.parquet")) == expected
    assert find_images(str(root)).manifest["column"].to_pylist() == ["image"] * 4


def test_parquet_is_described_by_its_files_and_column(root: Path) -> None:
    """Catches other images, or those of another column, that pass for the same data: rows have no size."""
    described = []
    for content, column in ((b"1", "a"), (b"1" * 500, "a"), (b"1", "b")):
        parquet(root / "images.parquet", a=pa.array([content, b"2"]), b=pa.array([content, b"2"]))
        described.append(find_images(str(root / "images.parquet"), image_column=column).describe())
    rows = [row["source"] for row in described[0] if isinstance(row, dict)]
    assert rows == ["images.parquet#0", "images.parquet#1"]
    assert described[0] != described[1] and described[0] != described[2]
    touch(root, "photos/1.png")
    assert find_images(str(root / "photos")).describe() == [{"source": "1.png", "size": 1}]


def test_image_column_chooses_parquet_and_must_have_one(root: Path) -> None:
    """Catches a misspelt or useless setting that is silently without effect."""
    touch(root, "thumbnail.png")
    parquet(root / "a.parquet", lr=pa.array([b"1"]), hr=pa.array([b"1"]))
    assert sources(find_images(str(root))) == ["thumbnail.png"]
    listing = find_images(str(root), image_column="hr")
    assert (sources(listing), listing.ignored) == (["a.parquet#0"], 1)
    with pytest.raises(BadRequest, match="no image column 'gt'"):
        find_images(str(root), image_column="gt")
    with pytest.raises(BadRequest, match="has no Parquet files"):
        find_images(str(root / "thumbnail.png"), image_column="hr")


def test_paired_folders(root: Path) -> None:
    touch(root, "HR/0001.png", "HR/sub/2.png", "LR/0001x2.png", "LR/sub/2.png", "LR/unused.png", "LR/notes.txt")
    listing = find_images(str(root / "HR"), lr_input=str(root / "LR"), scale=2)
    assert listing.manifest["lr_path"].to_pylist() == [str(root / "LR/0001x2.png"), str(root / "LR/sub/2.png")]
    assert listing.lr_uri == (root / "LR").as_uri()
    assert listing.lr_filesystem == listing.filesystem
    alone = find_images(str(root / "HR/0001.png"), lr_input=str(root / "LR"), scale=2)
    assert alone.manifest["lr_path"].to_pylist() == [str(root / "LR/0001x2.png")]
    with pytest.raises(BadRequest, match=r"2 of 2 .*0001\.png"):
        find_images(str(root / "HR"), lr_input=str(root / "HR/sub"), scale=2)
    with pytest.raises(BadRequest, match="not a folder"):
        find_images(str(root / "HR"), lr_input=str(root / "none"), scale=2)


def test_parquet_cannot_be_paired_by_name(root: Path) -> None:
    parquet(root / "a.parquet")
    with pytest.raises(BadRequest, match="is Parquet"):
        find_images(str(root), lr_input=str(root), scale=2)


def test_no_images_say_what_was_seen_and_what_is_read(root: Path) -> None:
    touch(root, "a.txt", "b.doc", "c")
    with pytest.raises(BadRequest) as caught:
        find_images(str(root))
    assert all(part in str(caught.value) for part in (root.as_uri(), "3 other files", "jpeg", "png", "parquet"))
    (root / "empty").mkdir()
    with pytest.raises(BadRequest, match="0 other files"):
        find_images(str(root / "empty"))
    with pytest.raises(BadRequest, match=r"no images match the pattern .*/\[exp é\] 1; 0 other files"):
        find_images(str(root / "[exp é] 1"))


@pytest.mark.parametrize("name", ["none", "none/a.png", "a.xyz"])
def test_missing_and_unknown_inputs_are_bad_requests(root: Path, name: str) -> None:
    touch(root, "a.xyz")
    with pytest.raises(BadRequest, match=name):
        find_images(str(root / name))


def test_file_uris_are_the_same_as_paths(root: Path) -> None:
    touch(root / "a b#c", "1.png")
    one, two = find_images(str(root / "a b#c")), find_images((root / "a b#c").as_uri())
    assert one.manifest.equals(two.manifest)
    assert one.uri == two.uri


def test_names_that_are_no_utf8_are_found(root: Path) -> None:
    touch(root, "a.png")
    try:
        Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    assert sources(find_images(str(root))) == ["a.png", "caf\\xe9.png"]


def in_a_store(root: Path) -> Callable[[str], StoragePath]:
    """`locate` for tests: anything but a LocalFileSystem counts as an object store."""
    store = fs.SubTreeFileSystem(str(root), fs.LocalFileSystem())
    return lambda text: StoragePath(store, text.removeprefix("s3://"), text)


def test_stores_give_the_same_sources_as_disks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches ids that change when a folder is uploaded."""
    touch(root / "bucket/set", "a b/1.png", "a b/2.jpg", "3.png", ".x/4.png", "n.doc")
    parquet(root / "bucket/pq/a.parquet")
    (root / "bucket/list.txt").write_text("set/3.png\n")
    cases = [
        "bucket/set",
        "bucket/set/**/*.png",
        "bucket/set/*/1.png",
        "bucket/list.txt",
        "bucket/pq",
        "bucket/set/3.png",
    ]
    local = {case: find_images(str(root / case)) for case in cases}
    monkeypatch.setattr(module, "locate", in_a_store(root))
    for case in cases:
        listing = find_images("s3://" + case)
        assert sources(listing) == sources(local[case])
        assert listing.ignored == local[case].ignored
        assert all(row["path"].startswith("bucket/") for row in listing.manifest.to_pylist())
    with pytest.raises(BadRequest, match="does not exist"):
        find_images("s3://bucket/none")


@pytest.mark.parametrize("way", ["folder", "below", "file", "above"])
def test_an_output_that_a_link_in_the_input_leads_to_is_not_read(tmp_path: Path, way: str) -> None:
    """Catches pictures of an earlier attempt, such as the gallery, that are condensed as if they were photographs."""
    source, output = tmp_path / "in", tmp_path / "all" / "out"
    for path in (source / "a.png", output / "gallery.png", output / "parts" / "b.png", tmp_path / "all" / "c.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    target = {"folder": output, "below": output / "parts", "file": output / "gallery.png", "above": output.parent}[way]
    (source / f"link{target.suffix}").symlink_to(target)
    listing = find_images(str(source), without=output_inside(str(source), str(output)))
    expected = ["a.png", "link/c.png"] if way == "above" else ["a.png"]
    assert listing.manifest["source"].to_pylist() == expected


@pytest.mark.parametrize(
    ("name", "fix"), [("a.zip", "unpack it"), ("a.tar", "unpack it"), ("a.arrow", "as Parquet"), ("a.bin", "rename it")]
)
def test_a_file_of_another_kind_is_refused_with_the_fix(tmp_path: Path, name: str, fix: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadRequest, match=fix):
        find_images(str(tmp_path / name))


class _Broken(fs.FileSystemHandler):
    """A file system whose library raises its own errors."""

    def fail(self, *arguments: object, **options: object) -> None:
        raise RuntimeError("https://me:s3cretPassword@host/x: no route")

    get_file_info = get_file_info_selector = open_input_file = open_input_stream = fail
    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = fail
    open_output_stream = open_append_stream = fail

    def get_type_name(self) -> str:
        return "broken"

    def normalize_path(self, path: str) -> str:
        return path


def test_an_error_of_a_file_systems_library_is_a_bad_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the traceback of httpx for hf://datasets/... without a network."""
    place = StoragePath(fs.PyFileSystem(_Broken()), "a/b", "hf://datasets/a/b")
    monkeypatch.setattr(module, "locate", lambda text: place)
    with pytest.raises(BadRequest, match=r"cannot access hf://datasets/a/b: .*no route; check network") as caught:
        find_images("hf://datasets/a/b")
    assert "s3cret" not in str(caught.value)
