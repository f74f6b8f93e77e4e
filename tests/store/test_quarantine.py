from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from idc_ray.errors import IdcError
from idc_ray.store.attempts import count_attempt
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import quarantine_name
from idc_ray.store.quarantine import list_quarantined, quarantine_image, quarantined_ids, release_quarantined
from tests.crashes import list_attempts


def test_entry_keeps_its_reason_and_the_latest_one_counts(store: StorageFolder, make: SimpleNamespace) -> None:
    odd = make.quarantine_entry("ordner/ü \n.png", reason="grund: 12 < 96", traceback="Traceback\n  …")
    quarantine_image(store, make.DIGEST, make.quarantine_entry("a.png"))
    quarantine_image(store, make.DIGEST, make.quarantine_entry("a.png", attempts=3))
    quarantine_image(store, make.DIGEST, odd)
    entries = list_quarantined(store, make.DIGEST)
    assert sorted(entries, key=lambda e: e.source) == [make.quarantine_entry("a.png", attempts=3), odd]
    assert [e.image_id for e in entries] == sorted(e.image_id for e in entries)
    assert quarantined_ids(store, make.DIGEST) == {e.image_id for e in entries}
    assert list_quarantined(store, "other") == []


def test_release_gives_a_fresh_start(store: StorageFolder, make: SimpleNamespace) -> None:
    """With its three attempts kept, a released image would be set aside again at its first failure."""
    bad, other = make.image_id("a.png"), make.image_id("b.png")
    quarantine_image(store, make.DIGEST, make.quarantine_entry("a.png", attempts=3))
    for image, token in ((bad, "t1"), (bad, "t2"), (other, "t1")):
        count_attempt(store, image, "worker", token)
    assert [e.source for e in release_quarantined(store, make.DIGEST)] == ["a.png"]
    assert list_quarantined(store, make.DIGEST) == []
    assert list_attempts(store) == {other: {"worker": 1, "launch": 0}}
    assert count_attempt(store, bad, "worker", "t3") == 1


def test_release_of_some_leaves_the_others_aside(store: StorageFolder, make: SimpleNamespace) -> None:
    for name in ("a.png", "b.png"):
        quarantine_image(store, make.DIGEST, make.quarantine_entry(name))
    released = release_quarantined(store, make.DIGEST, [make.image_id("a.png"), make.image_id("never.png")])
    assert [e.source for e in released] == ["a.png"]
    assert [e.source for e in list_quarantined(store, make.DIGEST)] == ["b.png"]


def test_release_that_is_killed_leaves_the_image_in_quarantine(objects: Any, make: SimpleNamespace) -> None:
    store = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
    quarantine_image(store, make.DIGEST, make.quarantine_entry("a.png"))
    count_attempt(store, make.image_id("a.png"), "worker", "t1")
    objects.fail_at = len(objects.changes) + 1  # attempts cleared, entry not yet deleted
    with pytest.raises(OSError, match="killed"):
        release_quarantined(store, make.DIGEST)
    objects.fail_at = None
    assert len(release_quarantined(store, make.DIGEST)) == 1 and quarantined_ids(store, make.DIGEST) == set()


@pytest.mark.parametrize("text", [b"{", b'{"image_id": "x"}'])
def test_damaged_entry_is_named(store: StorageFolder, make: SimpleNamespace, text: bytes) -> None:
    name = quarantine_name(make.DIGEST, make.image_id("a.png"))
    store.write(name, text)
    with pytest.raises(IdcError, match=name):
        list_quarantined(store, make.DIGEST)


def test_a_users_notes_in_the_folder_are_no_entries(store: StorageFolder, make: SimpleNamespace) -> None:
    store.write(f"quarantine/{make.DIGEST}/notes.json", b"hello")
    store.write(f"quarantine/{make.DIGEST}/not-sixteen-hex1.json", b"hello")
    assert list_quarantined(store, make.DIGEST) == []
