from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from idc_ray.errors import BadRequest, Locked
from idc_ray.store.filesystem import resolve
from idc_ray.store.lock import lock

_HOLDER = """
import sys, time
from idc_ray.store.filesystem import resolve
from idc_ray.store.lock import lock
with lock(resolve(sys.argv[1]), "job 1 on host a"):
    print("held", flush=True)
    time.sleep(60)
"""


def _hold(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_is_refused_with_the_holders_name_until_kill_9_frees_it(tmp_path: Path) -> None:
    store = resolve(str(tmp_path / "out"))
    process = _hold(tmp_path / "out")
    try:
        with (
            pytest.raises(Locked, match="in use by job 1 on host a; wait.*cannot share"),
            lock(store, "job 2"),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with lock(store, "job 2"):
        assert (tmp_path / "out" / ".lock").read_text() == "job 2"


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    store = resolve(str(tmp_path))
    with pytest.raises(RuntimeError), lock(store, "a"):
        raise RuntimeError
    with lock(store, "b") as lost:
        assert not lost.is_set()


def test_waiting_for_the_lock(tmp_path: Path) -> None:
    store = resolve(str(tmp_path))
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(store, "first"):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.2, release.set).start()
    with lock(store, "second", wait_s=10):
        assert release.is_set()
    thread.join()


def test_a_longer_name_of_the_holder_before_leaves_no_rest(tmp_path: Path) -> None:
    store = resolve(str(tmp_path))
    (tmp_path / ".lock").write_text("a very long name of a killed holder")
    with lock(store, "b"):
        assert (tmp_path / ".lock").read_text() == "b"


def test_an_error_inside_is_not_taken_for_a_held_lock(tmp_path: Path) -> None:
    """Waiting must not run the body again when the body itself raises Locked."""
    runs = []
    start = time.monotonic()

    def body() -> None:
        runs.append(1)
        raise Locked("inner")

    with pytest.raises(Locked, match="inner"), lock(resolve(str(tmp_path)), "a", wait_s=5):
        body()
    assert runs == [1] and time.monotonic() - start < 2


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """Catches a link laid into a shared output, by which the next job would empty a file of its user."""
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(precious)
    store = resolve(str(tmp_path / "out"))
    with pytest.raises(BadRequest, match=r"\.lock .*is a link.*remove it"), lock(store, "me"):
        pass
    assert precious.read_text() == "mine"


def test_a_file_that_is_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").symlink_to(precious)
    resolve(str(tmp_path / "out")).write("run.json", b"{}")
    assert precious.read_text() == "mine"
