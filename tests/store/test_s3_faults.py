"""What is done with a set in S3, where the store is slow, throttles, drops connections, or loses the credentials."""

from __future__ import annotations

import pytest

from idc_ray.errors import IdcError
from idc_ray.exporting import export_set
from idc_ray.object_stores import StoreUnavailable
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import read_manifest
from idc_ray.store.verify import verify
from idc_ray.training.fit import Fit
from idc_ray.training.pairs import PairTable, Patches
from idc_ray.training.sources import open_source
from tests.s3 import S3, Request
from tests.training.conftest import toy_config
from tests.training.test_sources import condensed

TIMES = ("exported_from.json", "manifest.json")
Answer = str | float | None


def commands(s3: S3, name: str) -> None:
    """Condense, compact, verify, export, and train: each reads what the ones before wrote."""
    run, pairs, student = (s3.uri(f"bucket/{name}/{what}") for what in ("run", "pairs", "student"))
    if read_manifest(resolve(run)) is None:
        condensed(run)
    assert verify(run, repair=True, deep=True).sound
    assert export_set(resolve(run), resolve(pairs), "webdataset") == 3
    config = toy_config(iterations=4, checkpoint_every=2)
    table = PairTable.build(list(open_source(config, run).pairs(lambda _: True)), 2)
    feed = Patches(table, config.patch_size, config.batch_size, config.seed)
    Fit(config, feed, [], resolve(student), report=lambda _: None, notes={}).run()


def restore(s3: S3, run: str) -> None:
    """The store is well again, and the lock of the command that could not delete it has expired."""
    s3.fault = lambda _: None
    resolve(run).delete(".lock")


def contents(s3: S3, name: str) -> dict[str, bytes]:
    """All objects, but for those with times in them."""
    keys = [key for key in s3.keys("bucket", f"{name}/") if not key.endswith(TIMES)]
    return {key.removeprefix(f"{name}/"): s3.get("bucket", key) for key in keys if "/.probe-" not in key}


@pytest.fixture
def undisturbed(s3: S3) -> tuple[dict[str, bytes], int]:
    """What is there in the end, and the number of requests."""
    with s3.counting() as requests:
        commands(s3, "undisturbed")
    return contents(s3, "undisturbed"), len(requests)


def test_faults_that_pass_change_nothing(s3: S3, undisturbed: tuple[dict[str, bytes], int]) -> None:
    """Catches half an object that is taken for a whole one, and a fault that is not tried again."""
    faults: list[Answer] = ["drop", "SlowDown", 0.2, "cut", "InternalError"]
    seen = 0

    def fault(_: Request) -> Answer:
        nonlocal seen
        seen += 1
        return faults[seen // 5 % len(faults)] if seen % 5 == 0 else None

    s3.fault = fault
    commands(s3, "disturbed")
    s3.fault = lambda _: None
    assert contents(s3, "disturbed") == undisturbed[0]
    assert seen > undisturbed[1]


def test_the_same_commands_go_on_after_the_credentials_were_lost(
    s3: S3, undisturbed: tuple[dict[str, bytes], int]
) -> None:
    """Catches a refused request that is taken for damage, or for a file that is not there."""
    expected, count = undisturbed
    for eighth in range(1, 8):
        name, last, error, seen = f"lost{eighth}", count * eighth // 8, ("ExpiredToken", "AccessDenied")[eighth % 2], 0

        def fault(_: Request, last: int = last, error: str = error) -> Answer:
            nonlocal seen
            seen += 1
            return error if seen > last else None

        s3.fault = fault
        with pytest.raises(IdcError, match="check the credentials"):
            commands(s3, name)
        restore(s3, s3.uri(f"bucket/{name}/run"))
        commands(s3, name)
        assert contents(s3, name) == expected, last


@pytest.mark.parametrize("fault", ["cut", "drop", "SlowDown", "ExpiredToken"])
def test_a_shard_that_cannot_be_read_is_not_damaged(s3: S3, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Catches a repair that removes sound shards, because their reader takes a lost connection for damage."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    run = s3.uri("bucket/whole/run")
    condensed(run)
    before = contents(s3, "whole")
    for first in range(3):
        seen = 0

        def failing(request: Request, first: int = first) -> Answer:
            nonlocal seen
            seen += request.method == "GET" and request.key.endswith(".parquet")
            return fault if seen > first else None

        s3.fault = failing
        with pytest.raises(StoreUnavailable, match=r"cannot (read|look at|list) .*same command"):
            verify(run, repair=True, deep=True)
        restore(s3, run)
        assert contents(s3, "whole") == before
