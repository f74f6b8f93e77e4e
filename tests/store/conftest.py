"""What the store's tests share: an object store in memory, and small images to put into it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
import threading
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.parts import commit_part
from idc_ray.store.quarantine import QuarantineEntry
from idc_ray.store.records import ImageRecord
from idc_ray.store.run_record import RunRecord
from idc_ray.store.schema import TileRow

DIGEST = "d1"
SHA = "ab" * 32


class _Upload(io.BytesIO):
    """What is written becomes visible when it is closed, as in an object store."""

    def __init__(self, publish: Callable[[bytes], None]) -> None:
        super().__init__()
        self._publish = publish

    def close(self) -> None:
        data = None if self.closed else self.getvalue()
        super().close()  # first: an upload that failed must not be tried again by the destructor
        if data is not None:
            self._publish(data)


class ObjectStore(FileSystemHandler):
    """Keys and bytes. No rename, no append, no folders: whoever asks for one has a bug.

    ``fail_at``: all changes from this number on fail, the first one before or after it took effect.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.changes: list[tuple[str, str]] = []
        self.fail_at: int | None = None
        self.fail_after = False
        self._guard = threading.Lock()

    def _change(self, what: str, path: str, effect: Callable[[], Any]) -> None:
        with self._guard:
            number = len(self.changes)
            self.changes.append((what, path))
            dead = self.fail_at is not None and number >= self.fail_at
            if not dead or (self.fail_after and number == self.fail_at):
                effect()
            if dead:
                raise ConnectionError(f"killed at change {number}: {what} {path}")

    def get_type_name(self) -> str:
        return "objects"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [
            FileInfo(p, FileType.File, size=len(self.objects[p]))
            if p in self.objects
            else FileInfo(p, FileType.NotFound)
            for p in paths
        ]

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        assert not selector.recursive
        prefix = selector.base_dir.rstrip("/") + "/"
        with self._guard:
            below = [(key, len(data)) for key, data in self.objects.items() if key.startswith(prefix)]
        names = {key[len(prefix) :].partition("/")[0] for key, _ in below if "/" in key[len(prefix) :]}
        infos = [FileInfo(key, FileType.File, size=size) for key, size in below if "/" not in key[len(prefix) :]]
        return infos + [FileInfo(prefix + name, FileType.Directory) for name in names]

    def delete_file(self, path: str) -> None:
        if path not in self.objects:
            raise FileNotFoundError(path)
        self._change("delete", path, lambda: self.objects.pop(path))

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        def put(data: bytes) -> None:
            self._change("write", path, lambda: self.objects.update({path: data}))

        return pa.PythonFile(_Upload(put), mode="w")

    def open_input_file(self, path: str) -> pa.NativeFile:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return pa.BufferReader(self.objects[path])

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def _refuse(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("an object store cannot do this")

    move = copy_file = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    open_append_stream = _refuse


def _tiny_png(shade: int) -> bytes:
    """A grey PNG of 2 x 2 pixels, without an imaging library."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, shade % 256, shade % 256] * 2))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def image_id(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def record(source: str, tiles: int = 2, **changes: Any) -> ImageRecord:
    whole = ImageRecord(
        image_id=image_id(source),
        source=source,
        source_bytes=1000,
        source_mtime_ns=1_700_000_000_123_456_789,
        source_sha256=SHA,
        lr_height=96,
        lr_width=144,
        candidate_tiles=6,
        tiles=tiles,
        kept_start=False,
        loss_start=0.5,
        loss_end=0.125,
        bandwidth_loss_start=[0.5, 0.25],
        bandwidth_loss_end=[0.125, 0.0625],
        seconds={"read": 0.01, "condense": 1.5},
        device="cpu",
    )
    return dataclasses.replace(whole, **changes)


def rows(source: str, tiles: int = 2, shade: int = 0, **changes: Any) -> list[TileRow]:
    return [
        dataclasses.replace(
            TileRow(
                image_id=image_id(source),
                source=source,
                source_bytes=1000,
                source_sha256=SHA,
                tile_index=i,
                top=48 * i,
                left=None,
                lr=_tiny_png(shade + i),
                hr=_tiny_png(shade + i + 1),
                scale=2,
                method="idc",
                labels="teacher",
                sample_weight=1.0,
                loss_start=0.5,
                loss_end=0.125,
                kept_start=False,
                config_digest=DIGEST,
            ),
            **changes,
        )
        for i in range(tiles)
    ]


def run_record(**changes: Any) -> RunRecord:
    whole = RunRecord(
        config={"scale": 2, "rlff": {"num_frequencies": 256}},
        digest=DIGEST,
        teacher_sha256=SHA,
        input_uri="/pictures",
        versions={"pyarrow": pa.__version__},
        shard_count=2,
        created="2025-01-01T00:00:00+00:00",
        device="cpu",
    )
    return dataclasses.replace(whole, **changes)


def quarantine_entry(source: str, **changes: Any) -> QuarantineEntry:
    whole = QuarantineEntry(
        image_id=image_id(source),
        source=source,
        code="truncated",
        reason="the file ends after 12 of 40 rows",
        traceback="",
        attempts=1,
        launch="launch1",
        time="2025-01-01T00:00:00+00:00",
    )
    return dataclasses.replace(whole, **changes)


def commit(store: StorageFolder, source: str, tiles: int = 2, shade: int = 0, **changes: Any) -> None:
    commit_part(store, DIGEST, [(record(source, tiles, **changes), rows(source, tiles, shade))])


@pytest.fixture
def make() -> SimpleNamespace:
    """Builders of small things, since test files cannot import each other."""
    return SimpleNamespace(
        DIGEST=DIGEST, image_id=image_id, record=record, rows=rows, run_record=run_record, commit=commit,
        quarantine_entry=quarantine_entry, ObjectStore=ObjectStore, PyFileSystem=PyFileSystem,
    )  # fmt: skip


@pytest.fixture
def objects() -> ObjectStore:
    """An empty object store."""
    return ObjectStore()


@pytest.fixture(params=["local", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> StorageFolder:
    """An empty output in a folder, and one in an object store: both must behave the same."""
    if request.param == "local":
        return resolve(str(tmp_path / "out"))
    return StorageFolder(PyFileSystem(request.getfixturevalue("objects")), "bucket/out", "mock://bucket/out")
