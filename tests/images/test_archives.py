from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import fs

from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images import ImageRef, find_images, load_instance, read_encoded
from idc_ray.images.archives import read_member

LIMIT = 1_000_000


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {"0001.png": png(1), "0001.json": b"{}", "0001.cls": b"3", "sub/0002.seg.PNG": png(2), ".hidden.png": b"x"}


def tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read(path: Path) -> dict[str, bytes]:
    listing = find_images(str(path))
    filesystem = pickle.loads(pickle.dumps(listing.filesystem))
    return {r["source"]: read_encoded(ImageRef.from_row(r), filesystem, LIMIT) for r in listing.manifest.to_pylist()}


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_images_of_a_webdataset_are_read_one_by_one(tmp_path: Path, format: int) -> None:
    """Catches labels that are mistaken for images, and a member that is read at another's offset."""
    path = tar(tmp_path / "shard-0000.tar", FILES, format)
    assert read(path) == {
        "shard-0000.tar#0001.png": FILES["0001.png"],
        "shard-0000.tar#sub/0002.seg.PNG": FILES["sub/0002.seg.PNG"],
    }
    listing = find_images(str(path))
    assert listing.ignored == 2 and listing.manifest["size"].to_pylist() == [len(png(1)), len(png(2))]
    ref = ImageRef.from_row(listing.manifest.to_pylist()[1])
    instance = load_instance(ref, listing.filesystem, scale=2, tile_size=16, max_pixels=LIMIT, keep_hr=True)
    assert instance.source_sha256 == hashlib.sha256(png(2)).hexdigest()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_of_images(tmp_path: Path, method: int) -> None:
    files = FILES | {"ü \u202e.png": png(3), "noise.png": os.urandom(3000)}
    found = read(zipped(tmp_path / "a.zip", files, method))
    assert found == {f"a.zip#{name}": data for name, data in files.items() if re.search(r"(?i)^[^.].*png$", name)}


def test_a_folder_of_archives_and_ids_that_move_with_it(tmp_path: Path) -> None:
    """Catches one archive's members mistaken for another's of the same name."""
    for name in ("x/a.tar", "x/b.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        tar(tmp_path / name, {"1.png": png(1)})
    listing = find_images(str(tmp_path))
    assert listing.manifest["source"].to_pylist() == ["x/a.tar#1.png", "x/b.tar#1.png"]
    (tmp_path / "x" / "c.png").write_bytes(png(2))
    assert find_images(str(tmp_path)).manifest["source"].to_pylist() == ["x/c.png"]


def test_members_never_leave_the_archives_name_and_links_are_no_images(tmp_path: Path) -> None:
    """Catches `upscale` writing to /etc for a member called ../../etc/x.png, and a link to a secret file."""
    path = tar(tmp_path / "a.tar", {"../../x.png": png(1), "/etc/y.png": png(2), "@up/z.png": png(3)})
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"link{kind!r}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert find_images(str(path)).manifest["source"].to_pylist() == [
        "a.tar#@@up/z.png", "a.tar#@root/etc/y.png", "a.tar#@up/@up/x.png",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "data"), [
    ("a.zip", b"PK\x03\x04 no zip"), ("a.tar", b"no tar" * 200), ("b.tar", gzip.compress(b"x" * 2000)), ("c.zip", b""),
])  # fmt: skip
def test_what_is_no_archive_is_refused_with_its_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadRequest, match=f"{name}.*unpack it"):
        find_images(str(tmp_path / name))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """Catches a few kilobytes that fill the memory: the size in the directory is a limit, and is limited itself."""
    path = zipped(tmp_path / "a.zip", {"a.png": bytes(200_000_000)})
    listing = find_images(str(path))
    ref = ImageRef.from_row(listing.manifest.to_pylist()[0])
    with pytest.raises(RejectedImage, match="too_large_file"):
        read_encoded(ref, listing.filesystem, LIMIT)
    lying = ImageRef.from_row(listing.manifest.to_pylist()[0] | {"size": 1000})
    with pytest.raises(RejectedImage, match="corrupt"):
        read_member(fs.LocalFileSystem(), lying)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Catches a zip whose directory names the same bytes a million times."""
    data = zipped(tmp_path / "a.zip", {"a.png": os.urandom(5000)}).read_bytes()
    begin = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry, tail = data[begin:end], bytearray(data[end:])
    tail[8:12] = (3).to_bytes(2, "little") * 2
    tail[12:16] = (3 * len(entry)).to_bytes(4, "little")
    (tmp_path / "b.zip").write_bytes(data[:begin] + 3 * entry + tail)
    with pytest.raises(BadRequest, match="overlap"):
        find_images(str(tmp_path / "b.zip"))


@pytest.mark.parametrize(("field", "place"), [("size", 24), ("offset", 42)])
@pytest.mark.parametrize("value", [1 << 63, (1 << 64) - 1])
def test_a_zip_that_states_impossible_numbers_is_refused(tmp_path: Path, field: str, place: int, value: int) -> None:
    data = bytearray(zipped(tmp_path / "a.zip", {"a.png": b"x"}).read_bytes())
    begin = data.index(b"PK\x01\x02")
    data[begin + place : begin + place + 4] = b"\xff" * 4  # the number is in an extra field
    data[begin + 30] = 12
    data[begin + 51 : begin + 51] = struct.pack("<HHQ", 1, 8, value)
    end = data.index(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", end - begin)
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(BadRequest, match=f"cannot read the archive 'b.zip'.*{value}"):
        find_images(str(tmp_path / "b.zip"))


@pytest.mark.parametrize("value", [-5, 1 << 40, 1 << 70])
def test_a_tar_that_states_impossible_numbers_is_refused(tmp_path: Path, value: int) -> None:
    info = tarfile.TarInfo("a.png")
    data = bytearray(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    data[124:136] = (b"\xff" if value < 0 else b"\x80") + (value % (1 << 88)).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(BadRequest, match=r"cannot read the archive 'b.tar'"):
        find_images(str(tmp_path / "b.tar"))


def test_a_damaged_or_encrypted_member_is_that_images_fault(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.png": os.urandom(500), "b.png": png(2)}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    first, second = find_images(str(path)).manifest.to_pylist()
    with pytest.raises(RejectedImage, match="corrupt"):
        read_encoded(ImageRef.from_row(first), fs.LocalFileSystem(), LIMIT)
    assert read_encoded(ImageRef.from_row(second), fs.LocalFileSystem(), LIMIT) == png(2)
    for changed, reason in (({"column": "encrypted"}, "password"), ({"column": "14 5 5"}, "compression 14"),
                            ({"row": 10}, "changed")):  # fmt: skip
        with pytest.raises(RejectedImage, match=reason):
            read_encoded(ImageRef.from_row(second | changed), fs.LocalFileSystem(), LIMIT)


def test_a_tar_that_is_cut_loses_no_image_silently(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"a.png": png(1), "b.png": os.urandom(5000)})
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(BadRequest, match="unexpected end of data"):
        find_images(str(path))


def test_pairs_and_columns_need_other_inputs(tmp_path: Path) -> None:
    path = str(tar(tmp_path / "a.tar", FILES))
    with pytest.raises(BadRequest, match="unpack"):
        find_images(path, lr_input=str(tmp_path))
    with pytest.raises(BadRequest, match="no Parquet"):
        find_images(path, image_column="x")
