"""To open a pipe waits for its other end: without a limit each of these tests hangs."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from idc_ray.errors import BadRequest, IdcError, RejectedImage
from idc_ray.images import ImageRef, find_images, load_instance, read_encoded
from idc_ray.images.names import read_bytes
from idc_ray.models import load_teacher
from idc_ray.regular_files import NotRegularFile, open_regular
from idc_ray.store.filesystem import resolve

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(params=["pipe", "socket", "device", "folder", "link to a pipe"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "odd.png"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "socket":
        short = Path("/tmp") / f"idc-{os.getpid()}.sock"  # a socket's path has at most 107 bytes
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(short))
        short.rename(path)
        server.close()
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "folder":
        path.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    return path


def test_only_regular_files_are_opened(odd: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for path in (str(odd), os.fsencode(odd)):
        with pytest.raises(NotRegularFile, match="expected a regular file"):
            open_regular(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_and_a_link_to_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    for name in ("a", "b"):
        with open_regular(str(tmp_path / name)) as file:
            assert file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        open_regular(str(tmp_path / "c"))


def test_a_line_of_a_list_costs_its_image_only(odd: Path, tmp_path: Path) -> None:
    """Catches a driver that waits indefinitely for a pipe that a list names."""
    (tmp_path / "good.png").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("odd.png\ngood.png\n")
    if odd.is_dir():  # a mistake in the list, not an image that cannot be read
        with pytest.raises(BadRequest, match="folder"):
            find_images(str(tmp_path / "list.txt"))
        return
    rows = find_images(str(tmp_path / "list.txt")).manifest.to_pylist()
    (ref,) = [ImageRef.from_row(row) for row in rows if row["source"] == "odd.png"]
    with pytest.raises(RejectedImage, match="expected a regular file") as caught:
        load_instance(ref, fs.LocalFileSystem(), scale=2, tile_size=8, max_pixels=100, keep_hr=False)
    assert caught.value.code == "unreadable"


def test_a_pipe_with_a_writer_is_not_read_either(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.open("wb").close(), daemon=True)
    writer.start()
    with pytest.raises(RejectedImage, match="is a pipe"):
        read_encoded(ImageRef("0" * 16, "a.png", str(path), -1, -1, None, -1), fs.LocalFileSystem(), 100)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # lets the writer go, whenever it opens the pipe
    writer.join()
    os.close(reader)


def test_inputs_checkpoints_and_outputs_are_refused(odd: Path, tmp_path: Path) -> None:
    if not odd.is_dir():
        with pytest.raises(BadRequest, match="a pipe, a socket or a device"):
            find_images(str(odd))
    with pytest.raises(BadRequest, match="expected a regular file"):
        read_bytes(str(odd), "--teacher")
    with pytest.raises(BadRequest, match="expected a regular file"):
        load_teacher(odd, scale=2)
    with pytest.raises(IdcError, match="expected a regular file"):
        resolve(str(tmp_path)).read(odd.name)
    with pytest.raises(IdcError, match="expected a regular file"):
        resolve(str(tmp_path)).open(odd.name)


def test_parquet_is_read_through_the_same_door(tmp_path: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": b"x", "path": ""}], kind)}), tmp_path / "a.parquet")
    rows = find_images(str(tmp_path / "a.parquet")).manifest.to_pylist()
    assert read_encoded(ImageRef.from_row(rows[0]), fs.LocalFileSystem(), 100) == b"x"
