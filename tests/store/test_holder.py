from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from idc_ray.errors import Locked
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import Holder, holder_text, read_holder
from idc_ray.store.lock import lock

LAUNCH = "20260101T120000-0a1b2c3d"


def test_an_output_without_a_lock(store: StorageFolder) -> None:
    assert read_holder(store) == Holder("free")
    with lock(store, holder_text()):
        pass
    assert read_holder(store) == Holder("free")


def test_reading_a_held_lock_gives_its_holder_and_does_not_take_it(store: StorageFolder) -> None:
    """Catches a status that makes a job starting at that moment end with exit code 4."""
    name = holder_text(LAUNCH)
    with lock(store, name):
        found = read_holder(store)
        assert (found.state, found.name, found.launch) == ("held", name, LAUNCH)
        with pytest.raises(Locked), lock(store, "another"):
            pass
    assert read_holder(store).state == "free"


def test_the_lock_is_free_after_an_interrupt(store: StorageFolder) -> None:
    """Catches a stopped job whose name is left behind, as if it had been killed."""
    with pytest.raises(KeyboardInterrupt), lock(store, holder_text(LAUNCH)):
        raise KeyboardInterrupt
    assert read_holder(store) == Holder("free")


def test_a_killed_holder_is_distinguished_from_a_live_one(tmp_path: Path) -> None:
    """Catches a name that is believed indefinitely, and another process that got the dead one's number."""
    storage = resolve(str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getpid()):  # the second lives, but has not this file open
        text = f"process {pid} on {socket.gethostname()}, launch {LAUNCH}"
        (tmp_path / ".lock").write_text(text)
        assert read_holder(storage) == Holder("left", text, LAUNCH)


@pytest.mark.parametrize("text", ["process 1 on elsewhere, launch x-1", "process 1 on elsewhere", "somebody"])
def test_a_process_of_another_machine_cannot_be_judged(tmp_path: Path, text: str) -> None:
    (tmp_path / ".lock").write_text(text)
    found = read_holder(resolve(str(tmp_path)))
    assert (found.state, found.name) == ("elsewhere", text)


def test_a_lease_that_expires_and_one_that_has(make: SimpleNamespace) -> None:
    objects = make.ObjectStore()
    storage = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
    for seconds, state in ((60, "held"), (-5, "left")):
        lease = {"holder": f"process 1 on h, launch {LAUNCH}", "token": "t", "expires": time.time() + seconds}
        objects.objects["bucket/out/.lock"] = json.dumps(lease).encode()
        found = read_holder(storage)
        assert (found.state, found.launch) == (state, LAUNCH)
        assert found.expires_s == pytest.approx(seconds, abs=2)
    objects.objects["bucket/out/.lock"] = b"no lease"
    assert read_holder(storage) == Holder("free")
    assert not objects.changes
