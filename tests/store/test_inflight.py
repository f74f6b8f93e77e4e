from __future__ import annotations

import dataclasses

import pytest

from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.inflight import Inflight, clear_inflight, end_launch, read_inflight, write_inflight
from idc_ray.store.layout import inflight_name

WORK = Inflight(images=["a" * 16, "b" * 16], isolated=False, node_id="n1", pid=4711, started=1.5)


def test_the_next_launch_sees_what_a_killed_one_had_begun(store: StorageFolder) -> None:
    write_inflight(store, "launch1", "actor0", WORK)
    write_inflight(store, "launch1", "actor0", dataclasses.replace(WORK, images=["c" * 16], isolated=True))
    write_inflight(store, "launch1", "actor1", WORK)
    write_inflight(store, "launch2", "actor0", WORK)
    found = read_inflight(store)
    assert [(i.launch, i.actor, i.images, i.isolated) for i in found] == [
        ("launch1", "actor0", ["c" * 16], True),
        ("launch1", "actor1", WORK.images, False),
        ("launch2", "actor0", WORK.images, False),
    ]
    assert [i.launch for i in read_inflight(store, "launch2")] == ["launch2"]


def test_finished_work_and_ended_launches_are_forgotten(store: StorageFolder) -> None:
    for launch in ("launch1", "launch2"):
        for actor in ("actor0", "actor1"):
            write_inflight(store, launch, actor, WORK)
    clear_inflight(store, "launch1", "actor0")
    clear_inflight(store, "launch1", "actor0")
    assert [i.actor for i in read_inflight(store, "launch1")] == ["actor1"]
    end_launch(store, "launch1")
    end_launch(store, "launch1")
    assert {i.launch for i in read_inflight(store)} == {"launch2"}
    assert store.folders("inflight") == ["launch2"]


@pytest.mark.parametrize("data", [b"", b"{", b"\0" * 40, b"[]", b'{"images": 3}'])
def test_a_damaged_record_is_logged_and_can_be_forgotten(
    store: StorageFolder, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a job that cannot go on after a power failure emptied a record that only says what was in flight."""
    store.write(inflight_name("launch1", "actor0"), data)
    (record,) = read_inflight(store)
    assert (record.images, record.isolated, record.launch, record.actor) == ([], False, "launch1", "actor0")
    assert "inflight/launch1/actor0.json" in caplog.text
    end_launch(store, record.launch)
    assert not store.all_files() if store.is_local else not read_inflight(store)
