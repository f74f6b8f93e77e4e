from __future__ import annotations

import dataclasses

import pytest

from idc_ray.errors import IdcError
from idc_ray.store import Inflight, Store
from idc_ray.store.layout import inflight_name

WORK = Inflight(images=["a" * 16, "b" * 16], isolated=False, node_id="n1", pid=4711, started=1.5)


def test_the_next_launch_sees_what_a_killed_one_had_begun(store: Store) -> None:
    store.write_inflight("launch1", "actor0", WORK)
    store.write_inflight("launch1", "actor0", dataclasses.replace(WORK, images=["c" * 16], isolated=True))
    store.write_inflight("launch1", "actor1", WORK)
    store.write_inflight("launch2", "actor0", WORK)
    found = store.read_inflight()
    assert [(i.launch, i.actor, i.images, i.isolated) for i in found] == [
        ("launch1", "actor0", ["c" * 16], True),
        ("launch1", "actor1", WORK.images, False),
        ("launch2", "actor0", WORK.images, False),
    ]
    assert [i.launch for i in store.read_inflight("launch2")] == ["launch2"]


def test_finished_work_and_ended_launches_are_forgotten(store: Store) -> None:
    for launch in ("launch1", "launch2"):
        for actor in ("actor0", "actor1"):
            store.write_inflight(launch, actor, WORK)
    store.clear_inflight("launch1", "actor0")
    store.clear_inflight("launch1", "actor0")
    assert [i.actor for i in store.read_inflight("launch1")] == ["actor1"]
    store.end_launch("launch1")
    store.end_launch("launch1")
    assert {i.launch for i in store.read_inflight()} == {"launch2"}
    assert store.storage.folders("inflight") == ["launch2"]


def test_damaged_record_is_named(store: Store) -> None:
    store.storage.write(inflight_name("launch1", "actor0"), b"{")
    with pytest.raises(IdcError, match=r"inflight/launch1/actor0\.json"):
        store.read_inflight()
