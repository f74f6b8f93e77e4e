from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from idc_ray.store import Store
from idc_ray.store.attempts import count_attempts


def test_the_same_death_counts_once_and_kinds_apart(store: Store, make: SimpleNamespace) -> None:
    bad = make.image_id("a.png")
    assert store.count_attempt(bad, "worker", "launch1-actor0-4711") == 1
    assert store.count_attempt(bad, "worker", "launch1-actor0-4711") == 1  # the driver was killed and looks again
    assert store.count_attempt(bad, "worker", "launch1-actor0-4712") == 2
    assert store.count_attempt(bad, "launch", "launch1") == 1
    assert store.list_attempts() == {bad: {"worker": 2, "launch": 1}}
    assert Store.open(store.storage.root, store.storage.fs).list_attempts() == store.list_attempts()


def test_counts_from_many_threads_are_all_kept(store: Store, make: SimpleNamespace) -> None:
    """A counter that is read, raised and written loses some."""
    bad = make.image_id("a.png")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.count_attempt(bad, "worker", f"t{i}"), range(24)))
    assert count_attempts(store.storage, bad)["worker"] == 24


def test_clearing_one_image_spares_the_others(store: Store, make: SimpleNamespace) -> None:
    for source in ("a.png", "b.png"):
        store.count_attempt(make.image_id(source), "launch", "t")
    store.clear_attempts(make.image_id("a.png"))
    store.clear_attempts(make.image_id("a.png"))
    assert list(store.list_attempts()) == [make.image_id("b.png")]


@pytest.mark.parametrize(("kind", "token"), [("workers", "t"), ("worker", "../t"), ("worker", "")])
def test_misspelt_kinds_and_tokens_that_are_no_names_are_refused(
    store: Store, make: SimpleNamespace, kind: Any, token: str
) -> None:
    with pytest.raises(ValueError, match="expected"):
        store.count_attempt(make.image_id("a.png"), kind, token)
