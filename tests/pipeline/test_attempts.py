from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from idc_ray.pipeline.attempts import Ledger, begin_reading, end_reading, suspects_of_earlier_launches
from idc_ray.store import Inflight, list_attempts, read_inflight, write_inflight
from idc_ray.store.filesystem import StorageFolder, resolve
from tests.pipeline.conftest import LAUNCH, ids

A, B, C = ids("a", "b", "c")
HERE = "node1"


def nothing_finished(image_id: str) -> bool:
    return False


@pytest.fixture
def store(tmp_path: Path) -> StorageFolder:
    return resolve(str(tmp_path / "out"))


def ledger(store: StorageFolder, actor: str, lives: Callable[[str], bool] = bool) -> Ledger:
    return Ledger(store, LAUNCH, actor, HERE, lives)


def left_by(store: StorageFolder, launch: str, images: list[str], isolated: bool) -> None:
    """What a killed attempt leaves."""
    write_inflight(store, launch, "actor", Inflight(images, isolated, HERE, 7, 0.0))


def test_a_death_alone_counts_once_and_its_statement_goes(store: StorageFolder) -> None:
    """Catches a death that is counted again by each worker that meets it, and one that is never counted."""
    ledger(store, "dead").begin([A], isolated=True)
    successor = ledger(store, "successor")
    successor.begin([A], isolated=False)
    (record,) = successor.dead_predecessors([A, B])
    assert successor.count_death(record) == 1
    assert successor.count_death(record) == 1
    assert successor.dead_predecessors([A, B]) == []
    assert [each.actor for each in read_inflight(store, LAUNCH)] == ["successor"]


def test_every_further_death_counts(store: StorageFolder) -> None:
    """Catches an image that kills its workers indefinitely because the tokens of its deaths are alike."""
    counts = []
    for number in range(3):
        ledger(store, f"dead{number}").begin([A], isolated=True)
        successor = ledger(store, "successor")
        (record,) = successor.dead_predecessors([A])
        counts.append(successor.count_death(record))
    assert counts == [1, 2, 3]


def test_a_death_of_several_together_counts_against_none(store: StorageFolder) -> None:
    """Catches an innocent image that is quarantined for its neighbour."""
    ledger(store, "dead").begin([A, B], isolated=False)
    successor = ledger(store, "successor")
    (record,) = successor.dead_predecessors([B])
    assert successor.count_death(record) == 0
    assert list_attempts(store) == {}
    assert read_inflight(store, LAUNCH) == []


def test_a_death_with_its_machine_counts_against_none(store: StorageFolder) -> None:
    """Catches an image that is quarantined because a spot machine was taken away."""
    ledger(store, "dead").begin([A], isolated=True)
    successor = ledger(store, "successor", lives=lambda node: node != HERE)
    (record,) = successor.dead_predecessors([A])
    assert successor.count_death(record) == 0
    assert list_attempts(store) == {}


def test_only_other_workers_of_this_launch_on_these_images_are_predecessors(store: StorageFolder) -> None:
    """Catches a worker that takes itself, a living neighbour, a reader or an earlier attempt for a dead predecessor."""
    me = ledger(store, "me")
    me.begin([A], isolated=True)
    ledger(store, "neighbour").begin([B], isolated=False)
    begin_reading(store, LAUNCH, A, True, HERE, bool)
    left_by(store, "launch0", [A], isolated=True)
    assert me.dead_predecessors([A]) == []


def test_an_ended_worker_has_no_predecessors(store: StorageFolder) -> None:
    worker = ledger(store, "one")
    worker.begin([A], isolated=True)
    worker.end()
    worker.end()
    assert ledger(store, "two").dead_predecessors([A]) == []


def test_a_death_in_reading_counts_unless_the_machine_died(store: StorageFolder) -> None:
    """Catches an image whose decoder crashes and is tried again indefinitely, and one blamed for a lost machine."""
    assert begin_reading(store, LAUNCH, A, False, HERE, bool) == 0
    assert begin_reading(store, LAUNCH, A, False, HERE, lambda node: False) == 0
    assert begin_reading(store, LAUNCH, A, False, HERE, bool) == 1
    assert begin_reading(store, LAUNCH, A, False, HERE, bool) == 2
    end_reading(store, LAUNCH, A)
    assert begin_reading(store, LAUNCH, A, False, HERE, bool) == 0
    assert begin_reading(store, LAUNCH, B, False, HERE, bool) == 0


def test_a_launch_counts_once_against_an_image_however_often_it_is_read(store: StorageFolder) -> None:
    """Catches an attempt that is counted again by each later attempt that is killed before it clears anything."""
    left_by(store, "launch0", [A], isolated=True)
    for _ in range(3):
        suspects = suspects_of_earlier_launches(store, nothing_finished, allowed=2)
        assert (suspects.waiting, suspects.to_quarantine, suspects.launches) == ([A], {}, ["launch0"])
    left_by(store, "launch1", [A], isolated=True)
    assert suspects_of_earlier_launches(store, nothing_finished, allowed=2).to_quarantine == {A: 2}


def test_a_launch_that_died_over_several_counts_against_none_of_them(store: StorageFolder) -> None:
    for number in range(4):
        left_by(store, f"launch{number}", [A, B], isolated=False)
    suspects = suspects_of_earlier_launches(store, nothing_finished, allowed=1)
    assert (suspects.waiting, suspects.to_quarantine) == (sorted([A, B]), {})
    assert list_attempts(store) == {}


def test_what_is_finished_is_never_suspected_but_its_launch_is_forgotten(store: StorageFolder) -> None:
    """Catches a finished image that is condensed again or quarantined, since it was committed just before the kill."""
    left_by(store, "launch0", [A], isolated=True)
    suspects = suspects_of_earlier_launches(store, lambda image: image == A, allowed=1)
    assert (suspects.waiting, suspects.to_quarantine, suspects.launches) == ([], {}, ["launch0"])
    assert list_attempts(store) == {}


def test_those_that_ended_fewest_launches_come_first(store: StorageFolder) -> None:
    """Catches an image that kills every attempt before the innocent ones that wait behind it get their turn."""
    left_by(store, "launch0", [A], isolated=True)
    left_by(store, "launch1", [A], isolated=True)
    left_by(store, "launch2", [B], isolated=True)
    left_by(store, "launch3", [C, A], isolated=False)
    suspects = suspects_of_earlier_launches(store, nothing_finished, allowed=3)
    assert suspects.waiting == [C, B, A]
    assert suspects.launches == [f"launch{number}" for number in range(4)]
