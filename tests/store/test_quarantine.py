from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from idc_ray.errors import IdcError
from idc_ray.store import Store
from idc_ray.store.layout import quarantine_name


def test_entry_keeps_its_reason_and_the_latest_one_counts(store: Store, make: SimpleNamespace) -> None:
    odd = make.quarantine_entry("ordner/ü \n.png", reason="grund: 12 < 96", traceback="Traceback\n  …")
    store.quarantine(make.DIGEST, make.quarantine_entry("a.png"))
    store.quarantine(make.DIGEST, make.quarantine_entry("a.png", attempts=3))
    store.quarantine(make.DIGEST, odd)
    entries = store.list_quarantined(make.DIGEST)
    assert sorted(entries, key=lambda e: e.source) == [make.quarantine_entry("a.png", attempts=3), odd]
    assert [e.image_id for e in entries] == sorted(e.image_id for e in entries)
    assert store.quarantined_ids(make.DIGEST) == {e.image_id for e in entries}
    assert store.list_quarantined("other") == []


def test_release_gives_a_fresh_start(store: Store, make: SimpleNamespace) -> None:
    """With its three attempts kept, a released image would be set aside again at its first failure."""
    bad, other = make.image_id("a.png"), make.image_id("b.png")
    store.quarantine(make.DIGEST, make.quarantine_entry("a.png", attempts=3))
    for image, token in ((bad, "t1"), (bad, "t2"), (other, "t1")):
        store.count_attempt(image, "worker", token)
    assert [e.source for e in store.release_quarantined(make.DIGEST)] == ["a.png"]
    assert store.list_quarantined(make.DIGEST) == []
    assert store.list_attempts() == {other: {"worker": 1, "launch": 0}}
    assert store.count_attempt(bad, "worker", "t3") == 1


def test_release_of_some_leaves_the_others_aside(store: Store, make: SimpleNamespace) -> None:
    for name in ("a.png", "b.png"):
        store.quarantine(make.DIGEST, make.quarantine_entry(name))
    released = store.release_quarantined(make.DIGEST, [make.image_id("a.png"), make.image_id("never.png")])
    assert [e.source for e in released] == ["a.png"]
    assert [e.source for e in store.list_quarantined(make.DIGEST)] == ["b.png"]


def test_release_that_is_killed_leaves_the_image_in_quarantine(objects: Any, make: SimpleNamespace) -> None:
    store = Store.open("bucket/out", make.PyFileSystem(objects))
    store.quarantine(make.DIGEST, make.quarantine_entry("a.png"))
    store.count_attempt(make.image_id("a.png"), "worker", "t1")
    objects.fail_at = len(objects.changes) + 1  # attempts cleared, entry not yet deleted
    with pytest.raises(OSError, match="killed"):
        store.release_quarantined(make.DIGEST)
    objects.fail_at = None
    assert len(store.release_quarantined(make.DIGEST)) == 1 and store.quarantined_ids(make.DIGEST) == set()


@pytest.mark.parametrize("text", [b"{", b'{"image_id": "x"}'])
def test_damaged_entry_is_named(store: Store, make: SimpleNamespace, text: bytes) -> None:
    name = quarantine_name(make.DIGEST, make.image_id("a.png"))
    store.storage.write(name, text)
    with pytest.raises(IdcError, match=name):
        store.list_quarantined(make.DIGEST)


def test_a_users_notes_in_the_folder_are_no_entries(store: Store, make: SimpleNamespace) -> None:
    store.storage.write(f"quarantine/{make.DIGEST}/notes.json", b"hello")
    store.storage.write(f"quarantine/{make.DIGEST}/not-sixteen-hex1.json", b"hello")
    assert store.list_quarantined(make.DIGEST) == []
