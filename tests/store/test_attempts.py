from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from idc_ray.store.attempts import clear_attempts, count_attempt
from idc_ray.store.filesystem import StorageFolder
from tests.crashes import list_attempts


def test_the_same_death_counts_once_and_kinds_apart(store: StorageFolder, make: SimpleNamespace) -> None:
    bad = make.image_id("a.png")
    assert count_attempt(store, bad, "worker", "launch1-actor0-4711") == 1
    assert count_attempt(store, bad, "worker", "launch1-actor0-4711") == 1  # the driver was killed and looks again
    assert count_attempt(store, bad, "worker", "launch1-actor0-4712") == 2
    assert count_attempt(store, bad, "launch", "launch1") == 1
    assert list_attempts(store) == {bad: {"worker": 2, "launch": 1}}
    assert list_attempts(StorageFolder(store.fs, store.root, store.uri)) == list_attempts(store)


def test_counts_from_many_threads_are_all_kept(store: StorageFolder, make: SimpleNamespace) -> None:
    """A counter that is read, raised and written loses some."""
    bad = make.image_id("a.png")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: count_attempt(store, bad, "worker", f"t{i}"), range(24)))
    assert list_attempts(store)[bad]["worker"] == 24


def test_clearing_one_image_spares_the_others(store: StorageFolder, make: SimpleNamespace) -> None:
    for source in ("a.png", "b.png"):
        count_attempt(store, make.image_id(source), "launch", "t")
    clear_attempts(store, make.image_id("a.png"))
    clear_attempts(store, make.image_id("a.png"))
    assert list(list_attempts(store)) == [make.image_id("b.png")]


@pytest.mark.parametrize("token", ["../t", ""])
def test_tokens_that_are_no_names_are_refused(store: StorageFolder, make: SimpleNamespace, token: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        count_attempt(store, make.image_id("a.png"), "worker", token)
