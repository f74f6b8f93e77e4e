"""What a power failure leaves: files of zeros or of no length where a disk lied, and deletions that never happened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from idc_ray.store import atomic
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.manifest import write_manifest
from idc_ray.store.quarantine import quarantine_image, release_quarantined
from idc_ray.store.verify import verify_output
from tests.store.test_verify import SHARDS, SOURCES, condense, contents

LEFT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "ends in zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


@pytest.mark.parametrize(("finish", "first"), [(True, 0), (True, 2), (False, 1), (False, 3)])
def test_every_file_of_which_less_is_left_is_found_and_its_images_are_done_again(
    tmp_path: Path, make: SimpleNamespace, finish: bool, first: int
) -> None:
    """Catches a file that was renamed before its content reached the disk, and is taken for a whole one."""
    whole = resolve(str(tmp_path / "whole"))
    condense(whole, make)
    for number in range(20):
        store = resolve(str(tmp_path / f"out{number}"))
        condense(store, make, finish=finish)
        quarantine_image(store, make.DIGEST, make.quarantine_entry("bad.png"))
        names = sorted(store.all_files())
        if number == len(names):
            break
        name = names[number]
        left = list(LEFT.values())[(first + number) % len(LEFT)]
        store.write(name, left(store.read(name) or b""))
        report = verify_output(store)
        assert [fault.file for fault in report.faults] == [name], report
        assert verify_output(store, repair=True).sound
        release_quarantined(store, make.DIGEST)
        condense(store, make)
        assert contents(store) == contents(whole) and verify_output(store, deep=True).sound, name
    assert number > 5


class Disk:
    """Deleted files come back in a power failure unless their folder was synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.deleted: dict[str, bytes] = {}
        self.changes, self.fails_at = 0, -1
        self.real = atomic.delete, atomic.sync_folder, atomic.write_bytes
        monkeypatch.setattr(atomic, "delete", self.delete)
        monkeypatch.setattr(atomic, "sync_folder", self.sync_folder)
        monkeypatch.setattr(atomic, "write_bytes", self.write_bytes)

    def count(self) -> None:
        if self.changes == self.fails_at:
            raise PowerFailure
        self.changes += 1

    def delete(self, fs: object, path: str) -> None:
        self.count()
        if os.path.exists(path):
            self.deleted[path] = Path(path).read_bytes()
        self.real[0](fs, path)

    def sync_folder(self, folder: str) -> None:
        self.deleted = {path: data for path, data in self.deleted.items() if os.path.dirname(path) != folder}
        self.real[1](folder)

    def write_bytes(self, fs: object, path: str, data: bytes) -> None:
        self.count()
        self.real[2](fs, path, data)

    def fail(self, *which: int) -> None:
        """Bring back some of the deleted files."""
        for number, (path, data) in enumerate(self.deleted.items()):
            if not which or number % which[0] == which[1]:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                Path(path).write_bytes(data)
        self.deleted = {}


class PowerFailure(Exception):
    """The machine stops."""


@pytest.mark.parametrize("back", [(), (2, 1)], ids=["all", "every other"])
def test_deletions_that_come_back_lose_and_double_nothing(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, back: tuple[int, ...]
) -> None:
    """Catches a part, note or manifest that returns after it was done with, at every change of a compaction."""
    whole = resolve(str(tmp_path / "whole"))
    condense(whole, make)
    disk = Disk(monkeypatch)
    fails_at, finished = 0, False
    while not finished:
        store = resolve(str(tmp_path / f"out{fails_at}"))
        disk.fails_at = -1
        condense(store, make, SOURCES[:6], finish=False)
        merge(store, make, 6)
        condense(store, make, SOURCES[3:], finish=False)
        disk.changes, disk.fails_at, disk.deleted = 0, fails_at, {}
        try:
            merge(store, make, len(SOURCES))
            finished = True
        except PowerFailure:
            pass
        disk.fail(*back)
        disk.fails_at = -1
        check_sound(store, make)
        condense(store, make)
        assert contents(store) == contents(whole), fails_at
        assert verify_output(store, deep=True).sound
        fails_at += 3
    assert fails_at > 10


def merge(store: StorageFolder, make: SimpleNamespace, images: int) -> None:
    for shard in range(SHARDS):
        compact(store, make.DIGEST, shard, SHARDS)
    write_manifest(store, make.DIGEST, 24, {"wall": 1.0}, images)


def check_sound(store: StorageFolder, make: SimpleNamespace) -> None:
    """All images are done, and what verify finds is at most that parts are not in shards yet."""
    assert set(find_done(store, make.DIGEST)) == {make.image_id(source) for source in SOURCES}
    report = verify_output(store)
    assert all("not in shards yet" in fault.what for fault in report.faults), report
