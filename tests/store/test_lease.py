from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest

from idc_ray.errors import Locked
from idc_ray.store import lease
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.lock import lock

KEY = "bucket/out/.lock"


@pytest.fixture
def remote(objects: Any, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> StorageFolder:
    for name, seconds in (("LEASE_S", 0.6), ("HEARTBEAT_S", 0.05), ("SETTLE_S", 0.05)):
        monkeypatch.setattr(lease, name, seconds)
    return StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")


def test_a_second_holder_is_refused_as_long_as_the_first_lives(remote: StorageFolder, objects: Any) -> None:
    with lock(remote, "job 1"):
        time.sleep(1.0)  # longer than the lease: the heartbeat keeps it
        with (
            pytest.raises(Locked, match=r"in use by job 1; .*expires in.*cannot share"),
            lock(remote, "job 2"),
        ):
            pass
    assert KEY not in objects.objects
    with lock(remote, "job 2"):
        assert json.loads(objects.objects[KEY])["holder"] == "job 2"


def test_the_lease_of_a_killed_holder_expires(remote: StorageFolder, objects: Any) -> None:
    objects.objects[KEY] = json.dumps({"holder": "dead", "token": "t", "expires": time.time() + 0.3}).encode()
    with pytest.raises(Locked, match="dead"), lock(remote, "job 2"):
        pass
    with lock(remote, "job 2", wait_s=5):
        pass


def test_a_lease_that_was_taken_over_is_reported_and_not_taken_back(remote: StorageFolder, objects: Any) -> None:
    with lock(remote, "job 1") as lost:
        taken = json.dumps({"holder": "job 2", "token": "t", "expires": time.time() + 60}).encode()
        for _ in range(100):
            objects.objects[KEY] = taken
            if lost.wait(0.05):
                break
        assert lost.is_set()
    assert objects.objects[KEY] == taken


def test_of_two_that_start_together_one_is_refused(
    remote: StorageFolder, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.sleep
    other = json.dumps({"holder": "job 2", "token": "t", "expires": time.time() + 0.6}).encode()

    def settle(seconds: float) -> None:
        objects.objects[KEY] = other  # the other one wrote after us
        real(seconds)

    monkeypatch.setattr(lease.time, "sleep", settle)
    with pytest.raises(Locked, match="job 2"), lock(remote, "job 1"):
        pass
    assert objects.objects[KEY] == other


def test_a_network_fault_does_not_end_the_heartbeat(remote: StorageFolder, objects: Any) -> None:
    with lock(remote, "job 1") as lost:
        objects.fail_at = len(objects.changes)
        time.sleep(0.2)
        objects.fail_at = None
        before = json.loads(objects.objects[KEY])["expires"]
        time.sleep(0.3)
        assert json.loads(objects.objects[KEY])["expires"] > before and not lost.is_set()


def test_a_lease_that_expired_without_renewal_is_lost_and_left_alone(remote: StorageFolder, objects: Any) -> None:
    """Catches a holder that continues writing while another process may hold the lease."""
    with lock(remote, "job 1") as lost:
        objects.fail_at = len(objects.changes)
        assert lost.wait(5)
        objects.fail_at = None


def test_a_lease_that_cannot_be_released_does_not_fail_the_work(
    remote: StorageFolder, objects: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with lock(remote, "job 1"):
        objects.fail_at = len(objects.changes)
    assert "it expires by itself" in caplog.text
    objects.fail_at = None
    with lock(remote, "job 2", wait_s=5):
        pass


def test_an_unreadable_lease_does_not_block(remote: StorageFolder, objects: Any) -> None:
    objects.objects[KEY] = b"{"
    with lock(remote, "job 1"):
        pass


def test_a_killed_holder_of_before_the_clock_was_set_back_blocks_nobody(remote: StorageFolder, objects: Any) -> None:
    """Catches an output that is locked for a day, since the lock was written by a clock that was a day ahead."""
    objects.objects[KEY] = json.dumps({"holder": "dead", "token": "t", "expires": time.time() + 86400}).encode()
    with lock(remote, "job 2") as lost:
        assert not lost.wait(0.2)


def test_a_live_holder_whose_clock_is_ahead_keeps_its_lock(
    remote: StorageFolder, objects: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = time.time() + 86400
    renewed = iter(range(1000))

    def wait(seconds: float) -> None:
        taken = {"holder": "job 1", "token": "t", "expires": ahead + next(renewed)}
        objects.objects[KEY] = json.dumps(taken).encode()

    wait(0)
    monkeypatch.setattr(lease.time, "sleep", wait)
    with pytest.raises(Locked, match="job 1"), lock(remote, "job 2"):
        pass
