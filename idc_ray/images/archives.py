"""Images in ``.tar`` archives, as WebDataset has them, and in ``.zip``; read one by one without unpacking."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
from pyarrow import fs

from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images.manifest import Entry, ImageRef
from idc_ray.images.names import inside, open_path, shown

ARCHIVE_ENDINGS = frozenset(("tar", "zip"))
#: Archives whose members are listed at the same time: an object store answers once for each member of a tar.
_THREADS = 16
_BUFFER = 1 << 16
_END = 1 << 63  # of what 64 bits hold, as Arrow's columns do
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip's member: mark, lengths of its name and of more
_FAULTS = (OSError, EOFError, ValueError, LookupError, OverflowError, RuntimeError, NotImplementedError, struct.error,
           tarfile.TarError, zipfile.BadZipFile, pa.ArrowException)  # fmt: skip


def member_entries(archives: list[Entry], filesystem: fs.FileSystem) -> Iterator[Entry]:
    """The files in archives. Sources are ``ARCHIVE#MEMBER``; a member's path never leaves the archive's name.

    Links, devices, sparse and hidden files are left out. Of a zip its directory is read, of a tar each header.

    Raises:
        BadRequest: an archive cannot be read, or is compressed as a whole.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        for entries in pool.map(partial(_members, filesystem), archives):
            yield from entries


def _members(filesystem: fs.FileSystem, archive: Entry) -> list[Entry]:
    found = []
    try:
        with open_path(filesystem, archive.path) as file:
            for name, size, offset, how in (_tar if archive.source.lower().endswith("tar") else _zip)(file):
                if not (0 <= size < _END and 0 <= offset < _END):
                    raise ValueError(f"it states {size} bytes of a member at {offset}")
                path = inside(shown(name))
                if not any(part.startswith(".") for part in path.split("/")):
                    mtime = archive.mtime_ns
                    found.append(Entry(f"{archive.source}#{path}", archive.path, size, mtime, None, offset, how))
    except _FAULTS as error:
        fix = "repair it, or unpack it and name the folder; .tar must not be compressed"
        raise BadRequest(f"cannot read the archive {archive.source!r}: {error}; {fix}") from error
    return found


def _tar(file: pa.NativeFile) -> Iterator[tuple[str, int, int, str]]:
    # Buffered: tarfile reads two times for a header, which an object store answers one by one.
    with tarfile.open(fileobj=io.BufferedReader(file, _BUFFER), mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else a million of them stay in memory
            if member.isreg() and not member.issparse():
                yield member.name, member.size, member.offset_data, "tar"


def _zip(file: pa.NativeFile) -> Iterator[tuple[str, int, int, str]]:
    length = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        members = [
            info for info in archive.infolist() if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)
        ]
    if sum(info.compress_size for info in members) > length:
        raise zipfile.BadZipFile("its members overlap")  # a bomb: each byte stands for many files
    for info in members:
        how = "encrypted" if info.flag_bits & 1 else f"{info.compress_type} {info.compress_size} {info.CRC}"
        yield info.filename, info.file_size, info.header_offset, how


def read_member(filesystem: fs.FileSystem, ref: ImageRef) -> bytes:
    """The encoded image in an archive.

    Raises:
        RejectedImage: ``unreadable``: encrypted, of a rare compression, or changed since it was listed.
        OSError: the archive cannot be read.
    """
    with open_path(filesystem, ref.path) as file:
        file.seek(ref.row)
        if ref.column == "tar":
            return file.read(ref.size)
        try:
            method, length, crc = map(int, (ref.column or "").split())
        except ValueError:
            raise RejectedImage("unreadable", "the member is encrypted; save it without a password") from None
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise RejectedImage("unreadable", "the archive has no member there; it changed after it was listed")
        file.seek(sum(_LOCAL_HEADER.unpack(header)[1:]), 1)
        data = file.read(length)
    return _unpacked(data, method, ref.size, crc)


def _unpacked(data: bytes, method: int, size: int, crc: int) -> bytes:
    if method == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            raise RejectedImage("corrupt", f"the member cannot be unpacked: {error}") from error
    elif method != zipfile.ZIP_STORED:
        raise RejectedImage("unreadable", f"the member's compression {method} is not supported; use deflate, or none")
    if len(data) != size or zlib.crc32(data) != crc:
        raise RejectedImage(
            "corrupt", f"the member has {len(data):,} bytes or a checksum that its directory does not state"
        )
    return data
