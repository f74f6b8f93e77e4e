"""Atomic writes: all files of the store are written here.

Local: a temporary file in the same folder, fsync, rename, fsync of the folder. Temporary files left by a killed process
have names that readers ignore, and `sweep` removes them.
Object store: one write of the whole object, which becomes visible when it is closed. The bytes are complete before
the stream is opened, so that an exception cannot publish half an object.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator

import pyarrow as pa
from pyarrow.fs import FileSystem, LocalFileSystem

from idc_ray.errors import IdcError

ABANDONED_AFTER_S = 3600.0  # no single write takes an hour, so an older temporary file has no writer
_ATTEMPTS = 3
_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
_TEMPORARY = re.compile(r"\.tmp-(?P<host>[A-Za-z0-9]+)-(?P<pid>\d+)-[0-9a-f]{32}")


def write_bytes(fs: FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Replace the content of ``path`` by ``data``; missing folders are made.

    Killed or failing at any moment, ``path`` has its old content or the new one, never a part of it.

    Raises:
        IdcError: the disk is full or the quota is used up.
        OSError: anything else that the file system refuses.
    """
    with _explain_full_disk(path, len(data)):
        if isinstance(fs, LocalFileSystem):
            _write_local(path, data)
        else:
            stream = fs.open_output_stream(path)  # not `with`: that would close, so publish, after a failed write
            stream.write(data)
            stream.close()


def delete(fs: FileSystem, path: str) -> None:
    """Delete a file; one that is not there is fine. Locally it may come back after a power cut: see `sync_folder`."""
    with contextlib.suppress(FileNotFoundError):
        if isinstance(fs, LocalFileSystem):
            os.unlink(path)
        else:
            fs.delete_file(path)


def make_folder(folder: str) -> None:
    """Make a local folder and its parents, so that they survive a power cut."""
    if os.path.isdir(folder):
        return
    parent = os.path.dirname(folder)
    make_folder(parent)
    with contextlib.suppress(FileExistsError):  # another process was faster
        os.mkdir(folder)
    sync_folder(parent)


def is_temporary(name: str) -> bool:
    """Whether ``write_bytes`` uses such a file name while it writes."""
    return _TEMPORARY.fullmatch(name) is not None


def abandoned(folder: str) -> list[str]:
    """Names of the temporary files in a local folder whose writers are dead, sorted."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as entries:
        matches = [(entry, match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name)) is not None]
        return sorted(entry.name for entry, match in matches if _is_abandoned(entry, match))


def sweep(folder: str) -> int:
    """Remove temporary files of dead writers from a local folder; returns their number."""
    swept = 0
    for name in abandoned(folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
            swept += 1
    return swept


def _write_local(path: str, data: bytes | pa.Buffer) -> None:
    folder = os.path.dirname(path)
    for attempt in range(_ATTEMPTS):
        try:
            _write_and_rename(os.path.join(folder, _temporary_name()), path, data)
            break
        except FileNotFoundError:  # the folder is not there yet, or was just removed because it was empty
            if attempt == _ATTEMPTS - 1:
                raise
            make_folder(folder)
    sync_folder(folder)


def _write_and_rename(temporary: str, path: str, data: bytes | pa.Buffer) -> None:
    # 0o666 under the user's umask: tempfile's 0600 would hide a shared output from the rest of the team.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def sync_folder(folder: str) -> None:
    """Make what was created, renamed or deleted in a local folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some mounted file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _temporary_name() -> str:
    return f".tmp-{_HOST}-{os.getpid()}-{uuid.uuid4().hex}"


def _is_abandoned(entry: os.DirEntry[str], match: re.Match[str]) -> bool:
    if match["host"] == _HOST and not _is_alive(int(match["pid"])):
        return True
    try:
        return time.time() - entry.stat().st_mtime > ABANDONED_AFTER_S
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _explain_full_disk(path: str, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise IdcError(
            f"no space left to write {path} ({size:,} bytes{_free(path)}); free some space and run the same command "
            "again: finished images are kept"
        ) from error


def _free(path: str) -> str:
    try:
        return f", {shutil.disk_usage(os.path.dirname(path)).free:,} free"
    except OSError:
        return ""
