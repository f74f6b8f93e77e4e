from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from idc_ray.pipeline import crashes as module
from idc_ray.pipeline.crashes import READING, Death, Ledger, suspects_of_earlier_launches
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.inflight import Inflight, write_inflight
from tests.crashes import list_attempts
from tests.pipeline.conftest import LAUNCH, ids

A, B, C = ids("a", "b", "c")
HERE = "node1"
UNFINISHED = pa.chunked_array([[A, B, C]])


@pytest.fixture
def store(tmp_path: Path) -> StorageFolder:
    return resolve(str(tmp_path / "out"))


def ledger(store: StorageFolder, lives: Callable[[str], bool] = bool, stage: str = "") -> Ledger:
    return Ledger(store, LAUNCH, HERE, lives, stage)


def left_by(store: StorageFolder, launch: str, images: list[str], isolated: bool) -> None:
    """What a killed attempt leaves."""
    write_inflight(store, launch, "actor", Inflight(images, isolated, HERE, 7, 0.0))


def test_every_death_in_isolation_counts_once(store: StorageFolder) -> None:
    """Catches a death that is never counted, and an image that kills for ever as the tokens of its deaths are alike."""
    assert ledger(store).begin([A, B], False) is None
    attempts = []
    for _ in range(3):
        successor = ledger(store)
        death = successor.begin([A, B], False)
        assert death is not None
        attempts.append(death.attempts)
        successor.record([A], True)
    assert attempts == [0, 1, 2]


def test_a_death_is_not_counted_again_by_each_successor(store: StorageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an image that is blamed for its successors, which died before they recorded anything."""
    ledger(store).begin([A], isolated=True)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_inflight", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                ledger(store).begin([A], isolated=False)
    assert list_attempts(store) == {A: {"worker": 1, "launch": 0}}


def test_a_death_of_several_together_counts_against_none(store: StorageFolder) -> None:
    """Catches an innocent image that is quarantined for its neighbour."""
    ledger(store).begin([A, B], isolated=False)
    assert ledger(store).begin([A, B], isolated=False) == Death()
    assert list_attempts(store) == {}


def test_a_death_with_its_machine_counts_against_none(store: StorageFolder) -> None:
    """Catches an image that is quarantined because a spot machine was taken away."""
    ledger(store).begin([A], isolated=True)
    assert ledger(store, lives=lambda node: node != HERE).begin([A], isolated=True) == Death()
    assert list_attempts(store) == {}


def test_other_batches_stages_and_launches_are_no_deaths(store: StorageFolder) -> None:
    """Catches a worker that takes a living neighbour, its reader or an earlier launch for a dead predecessor."""
    ledger(store).begin([B], isolated=False)
    ledger(store, stage=READING).begin([A], isolated=True)
    left_by(store, "launch0", [A], isolated=True)
    assert ledger(store).begin([A], isolated=True) is None


def test_an_ended_batch_suspects_nobody(store: StorageFolder) -> None:
    worker = ledger(store)
    worker.begin([A], isolated=True)
    worker.end()
    worker.end()
    assert ledger(store).begin([A], isolated=True) is None


def test_a_batch_costs_the_same_however_many_workers_there_are(
    store: StorageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches workers that read each other's records: their number squared."""
    for number in range(50):
        ledger(store).begin([f"{number:016x}"], isolated=False)
    read: list[str] = []
    original = StorageFolder.read
    monkeypatch.setattr(StorageFolder, "read", lambda self, name: (read.append(name), original(self, name))[1])
    monkeypatch.setattr(StorageFolder, "files", None)
    worker = ledger(store)
    worker.begin([A, B], isolated=False)
    worker.end()
    assert len(read) == 1


def test_a_launch_counts_once_against_an_image_however_often_it_is_read(store: StorageFolder) -> None:
    """Catches an attempt that is counted again by each later attempt that is killed before it clears anything."""
    left_by(store, "launch0", [A], isolated=True)
    for _ in range(3):
        suspects = suspects_of_earlier_launches(store, UNFINISHED, allowed=2)
        assert (suspects.waiting, suspects.to_quarantine, suspects.launches) == ([A], {}, ["launch0"])
    left_by(store, "launch1", [A], isolated=True)
    assert suspects_of_earlier_launches(store, UNFINISHED, allowed=2).to_quarantine == {A: 2}


def test_a_launch_that_died_over_several_counts_against_none_of_them(store: StorageFolder) -> None:
    for number in range(4):
        left_by(store, f"launch{number}", [A, B], isolated=False)
    suspects = suspects_of_earlier_launches(store, UNFINISHED, allowed=1)
    assert (suspects.waiting, suspects.to_quarantine) == (sorted([A, B]), {})
    assert list_attempts(store) == {}


def test_what_is_finished_is_never_suspected_but_its_launch_is_forgotten(store: StorageFolder) -> None:
    """Catches a finished image that is condensed again or quarantined, since it was committed just before the kill."""
    left_by(store, "launch0", [A], isolated=True)
    suspects = suspects_of_earlier_launches(store, UNFINISHED.slice(1), allowed=1)
    assert (suspects.waiting, suspects.to_quarantine, suspects.launches) == ([], {}, ["launch0"])
    assert list_attempts(store) == {}


def test_those_that_ended_fewest_launches_come_first(store: StorageFolder) -> None:
    """Catches an image that kills every attempt before the innocent ones that wait behind it get their turn."""
    left_by(store, "launch0", [A], isolated=True)
    left_by(store, "launch1", [A], isolated=True)
    left_by(store, "launch2", [B], isolated=True)
    left_by(store, "launch3", [C, A], isolated=False)
    suspects = suspects_of_earlier_launches(store, UNFINISHED, allowed=3)
    assert suspects.waiting == [C, B, A]
    assert suspects.launches == [f"launch{number}" for number in range(4)]
