"""The store on a real S3 protocol: pages, requests, the lease."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from idc_ray.errors import Locked
from idc_ray.object_stores import StoreUnavailable
from idc_ray.store import lease
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.layout import part_name
from idc_ray.store.lock import lock
from idc_ray.store.parts import commit_part, list_parts
from idc_ray.store.run_record import begin_run
from idc_ray.store.status import read_status
from tests.s3 import S3


@pytest.fixture
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LEASE_S", 3.0), ("HEARTBEAT_S", 0.2), ("SETTLE_S", 0.5)):
        monkeypatch.setattr(lease, name, seconds)


def store_at(s3: S3, path: str) -> StorageFolder:
    return resolve(s3.uri(f"bucket/{path}"))


def test_thousands_of_parts_are_listed_page_by_page(s3: S3, make: SimpleNamespace) -> None:
    """Catches a listing that stops after S3's first thousand: what it misses is done again."""
    from moto.s3.models import s3_backends

    ids = {f"ab{i:014x}" for i in range(2500)} | {f"cd{i:014x}" for i in range(30)}
    for image_id in ids:
        s3_backends["123456789012"]["aws"].put_object("bucket", f"many/{part_name(make.DIGEST, [image_id])}", b"")
    with s3.counting() as requests:
        names = list_parts(store_at(s3, "many"), make.DIGEST)
    assert names == sorted(part_name(make.DIGEST, [image_id]) for image_id in ids)
    assert len(requests) == 1 + 3 + 1  # the prefixes, three pages, one page
    assert {request.method for request in requests} == {"GET"}


def test_what_an_image_costs_in_requests(s3: S3, make: SimpleNamespace) -> None:
    """Catches a request for every column of a part, and uploads in pieces: what docs/scaling.md counts with."""
    store = store_at(s3, "cost")
    with s3.counting() as commit:
        for names in ("ab", "cd", "ef"):
            commit_part(store, make.DIGEST, [(make.record(name), make.rows(name)) for name in names])
    assert Counter(r.method for r in commit) == {"PUT": 3}
    parts = list_parts(store, make.DIGEST)
    with s3.counting() as compaction:
        compact(store, make.DIGEST, 0, 1)
    by_part = Counter(r.method for r in compaction if r.key.removeprefix("cost/") in parts)
    assert by_part == {"HEAD": 6, "GET": 3, "DELETE": 3}
    markers = [r for r in compaction if r.method == "PUT" and r.key.endswith("/")]
    assert len(markers) <= 3 + 1  # pyarrow keeps the folder of what it deletes
    assert len(compaction) < 12 + 4 + 25


@pytest.mark.usefixtures("quick_lease")
def test_the_lease_is_held_renewed_given_up_and_taken_over(s3: S3) -> None:
    first, second = store_at(s3, "leased"), store_at(s3, "leased")
    with lock(first, "driver 1") as lost:
        s3.fault = lambda request: "SlowDown" if request.method == "HEAD" and len(s3.requests) % 3 == 0 else None
        assert not lost.wait(4)  # longer than the lease: it is renewed, also by a store that stumbles
        s3.fault = lambda request: None
        with pytest.raises(Locked, match="driver 1.*expires in"), lock(second, "driver 2"):
            pass
    with lock(second, "driver 2") as lost:
        assert not lost.is_set()
    s3.put("bucket", "leased/.lock", b'{"holder": "a killed driver", "token": "x", "expires": 0}')
    with lock(first, "driver 3") as lost:
        assert not lost.is_set()
    assert not s3.keys("bucket", "leased")


@pytest.mark.usefixtures("quick_lease")
def test_of_two_drivers_that_start_together_one_gets_it(s3: S3) -> None:
    got, refused, begin = [], [], threading.Barrier(2)
    done = threading.Event()

    def drive(name: str) -> None:
        store = store_at(s3, "raced")
        begin.wait()
        try:
            with lock(store, name):
                got.append(name)
                done.wait(20)
        except Locked as error:
            refused.append(str(error))
            done.set()

    threads = [threading.Thread(target=drive, args=(f"driver {i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(refused) == 1
    assert got[0] in refused[0]


def test_a_refused_listing_is_reported_by_status_with_the_fix(s3: S3, make: SimpleNamespace) -> None:
    """Catches Arrow's traceback where a role may read, and not list everything."""
    store = store_at(s3, "unlisted")
    begin_run(store, make.run_record())
    commit_part(store, make.DIGEST, [(make.record("a"), make.rows("a"))])
    folder = f"parts/{make.DIGEST}/{make.image_id('a')[:2]}"
    s3.fault = lambda request: "AccessDenied" if request.key.rstrip("/").endswith(folder) else None
    with pytest.raises(StoreUnavailable, match="cannot list .*check the credentials"):
        read_status(store)


def test_deleting_keeps_to_our_own(s3: S3, make: SimpleNamespace, tmp_path: Path) -> None:
    """--overwrite on a prefix that others use too."""
    store = store_at(s3, "shared")
    s3.put("bucket", "shared/thesis.txt", b"mine")
    s3.put("bucket", "shared/parts/notes/x/thesis.txt", b"mine")
    begin_run(store, make.run_record())
    commit_part(store, make.DIGEST, [(make.record("a"), make.rows("a"))])
    begin_run(store, make.run_record(digest="d2"), overwrite=True)
    assert sorted(s3.keys("bucket", "shared")) == [
        "shared/parts/notes/x/thesis.txt", "shared/run.json", "shared/thesis.txt",
    ]  # fmt: skip
