from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, PyFileSystem

from idc_ray.errors import IdcError
from idc_ray.store import atomic
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import resolve
from idc_ray.store.owned import sweep

LOCAL = LocalFileSystem()

# A writer that stops for ever just before one of its system calls, so that it can be killed exactly there.
_WRITER = """
import os, sys, time
from pyarrow.fs import LocalFileSystem
from idc_ray.store import atomic

def stop(*args, **kwargs):
    if sys.argv[2] == "write":
        real(args[0], bytes(args[1])[: len(args[1]) // 2])
    print("stopped", flush=True)
    time.sleep(60)

real = getattr(os, sys.argv[2])
setattr(os, sys.argv[2], stop)
atomic.write_bytes(LocalFileSystem(), sys.argv[1], b"new" * 1000)
"""


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_kill_9_in_mid_write_leaves_the_old_file_whole_and_a_left_over_that_is_swept(tmp_path: Path, call: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path), call], stdout=subprocess.PIPE)
    assert writer.stdout is not None and writer.stdout.readline() == b"stopped\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()

    assert path.read_bytes() == b"old"
    (left,) = (p.name for p in tmp_path.iterdir() if p != path)
    assert atomic.is_temporary(left)
    assert atomic.sweep(str(tmp_path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_sweep_spares_the_temporary_file_of_a_living_writer_and_of_another_host(tmp_path: Path) -> None:
    mine = tmp_path / atomic._temporary_name()
    other_host = tmp_path / f".tmp-elsewhere-999999-{'0' * 32}"
    forgotten = tmp_path / f".tmp-elsewhere-999999-{'1' * 32}"
    for path in (mine, other_host, forgotten):
        path.write_bytes(b"")
    os.utime(forgotten, (time.time() - 2 * atomic.ABANDONED_AFTER_S,) * 2)
    assert atomic.sweep(str(tmp_path)) == 1
    assert mine.exists() and other_host.exists() and not forgotten.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["space", "quota"])
@pytest.mark.parametrize("call", ["write", "fsync", "close", "replace", "open"])
def test_full_disk_is_a_clear_error_and_leaves_nothing_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Network file systems may say at the very end that a quota is used up."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    close = os.close

    def full(*args: Any, **kwargs: object) -> None:
        if call == "close":
            close(*args)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(IdcError, match=r"no space left to write .*file \(3 bytes.*run the same command again"):
        atomic.write_bytes(LOCAL, str(path), b"new")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_short_writes_of_the_kernel_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    atomic.write_bytes(LOCAL, str(tmp_path / "file"), bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


def test_file_and_folder_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that reaches the disk before the data gives an empty file after a power cut."""
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(os.path.isdir(f"/proc/self/fd/{fd}")), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    atomic.write_bytes(LOCAL, str(tmp_path / "file"), b"x")
    assert calls == [False, "rename", True]


def test_missing_folders_are_made_and_the_mode_follows_the_umask(tmp_path: Path) -> None:
    """tempfile's 0600 would hide a shared output from the user's team."""
    path = tmp_path / "a" / "b" / "file"
    before = os.umask(0o022)
    try:
        atomic.write_bytes(LOCAL, str(path), b"x")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_swept_temporary_file_only_costs_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host's sweep, with its clock an hour ahead, must not fail a commit."""
    real = os.replace
    failures = [FileNotFoundError("swept")]

    def replace(source: str, target: str) -> None:
        if failures:
            os.unlink(source)
            raise failures.pop()
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    atomic.write_bytes(LOCAL, str(tmp_path / "file"), b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_object_store_gets_one_whole_write(objects: Any, make: SimpleNamespace) -> None:
    """The handler refuses rename, append and folders."""
    fs = PyFileSystem(objects)
    atomic.write_bytes(fs, "bucket/a/b", b"old")
    atomic.write_bytes(fs, "bucket/a/b", b"new")
    assert objects.objects == {"bucket/a/b": b"new"}
    assert objects.changes == [("write", "bucket/a/b")] * 2
    atomic.delete(fs, "bucket/a/b")
    atomic.delete(fs, "bucket/a/b")  # gone already: fine
    assert objects.objects == {}


def test_readers_ignore_what_a_killed_writer_left(tmp_path: Path, make: SimpleNamespace) -> None:
    store = resolve(str(tmp_path))
    make.commit(store, "a.png")
    folder = tmp_path / "parts" / make.DIGEST / make.image_id("a.png")[:2]
    (folder / f".tmp-{atomic._HOST}-4194305-{'0' * 32}").write_bytes(b"torn")
    assert set(find_done(store, make.DIGEST)) == {make.image_id("a.png")}
    assert len(find_done(store, make.DIGEST)) == 1
    assert sweep(store) == 1
