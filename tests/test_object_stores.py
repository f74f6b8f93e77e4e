from __future__ import annotations

import pickle
import time

import pytest

from idc_ray import object_stores
from idc_ray.errors import BadRequest, IdcError
from idc_ray.object_stores import StoreUnavailable, open_uri
from idc_ray.store.filesystem import resolve
from tests.s3 import S3, fails_first


def test_a_file_is_one_put_without_parts_or_copies(s3: S3) -> None:
    """Catches pyarrow's default, which makes three requests of a multipart upload of every small file."""
    storage = resolve(s3.uri("bucket/one"))
    with s3.counting() as requests:
        storage.write("a/b.json", b"x" * 5_000_000)
    assert [(r.method, r.key, r.query) for r in requests] == [("PUT", "one/a/b.json", "")]
    assert s3.get("bucket", "one/a/b.json") == b"x" * 5_000_000


def test_a_large_file_is_there_whole(s3: S3) -> None:
    storage = resolve(s3.uri("bucket/large"))
    data = bytes(range(256)) * 100_000
    storage.write("shard", data)
    assert storage.read("shard") == data


def test_an_endpoint_of_the_environment_travels_to_workers(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers on other machines have the file system, not the driver's environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    sent = pickle.dumps(resolve("s3://bucket/env"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    storage = pickle.loads(sent)
    storage.write("x", b"1")
    assert s3.get("bucket", "env/x") == b"1"
    assert b"a-secret-of-the-environment" not in sent


@pytest.mark.parametrize("error", ["SlowDown", "InternalError"])
def test_failing_requests_are_tried_again_also_by_workers(s3: S3, error: str) -> None:
    """Catches pyarrow's file systems, which lose the retry strategy in a pickle: its default gives up after three."""
    storage = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(resolve(s3.uri("bucket/again"))))))
    strategy = storage.fs.__reduce__()[0]
    assert strategy is object_stores._open_s3  # each opening says the number of attempts anew
    s3.fault = fails_first(2, error)
    storage.write(f"{error}.json", b"{}")
    assert storage.read(f"{error}.json") == b"{}"


def test_a_store_that_keeps_failing_is_reported_with_the_fix(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    storage = resolve(s3.uri("bucket/down", user="an-access-key:a-secret@"))
    s3.fault = lambda request: "SlowDown"
    for action in (lambda: storage.write("x", b""), lambda: storage.read("x"), lambda: storage.files("x"),
                   lambda: storage.size("x"), lambda: storage.delete("x")):  # fmt: skip
        with s3.counting() as requests, pytest.raises(StoreUnavailable, match=r"tried 2 times.*same command") as told:
            action()
        assert len(requests) == 2
        assert "bucket/down/x" in str(told.value) and "a-secret" not in str(told.value)
        assert isinstance(told.value, IdcError) and isinstance(told.value, OSError)


def test_refused_credentials_are_reported_at_once(s3: S3) -> None:
    s3.fault = lambda request: "AccessDenied"
    for action in (lambda p: p.write("x", b""), lambda p: p.size("x")):
        with s3.counting() as requests, pytest.raises(StoreUnavailable, match="check the credentials"):
            action(resolve(s3.uri("bucket/denied")))
        assert len(requests) == 1


def test_a_request_that_hangs_is_given_up_and_made_again(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_stores, "REQUEST_S", 1.0)
    storage = resolve(s3.uri("bucket/slow"))
    hung: list[str] = []

    def fault(request: object) -> float | None:
        hung.append("")
        return 30.0 if len(hung) == 1 else None

    s3.fault = fault
    begin = time.monotonic()
    storage.write("x", b"1")
    assert time.monotonic() - begin < 15


def test_connections_that_drop_are_made_again(s3: S3) -> None:
    """Catches a job that ends at the first connection that a proxy resets."""
    storage, seen = resolve(s3.uri("bucket/dropping")), []

    def fault(request: object) -> str | None:
        seen.append(request)
        return "drop" if len(seen) % 2 else None

    s3.fault = fault
    for number in range(3):
        storage.write(f"{number}.json", b"{}")
        assert storage.read(f"{number}.json") == b"{}"
    storage.delete("1.json")
    assert storage.files("") == ["0.json", "2.json"]
    assert len(seen) > 12


@pytest.mark.parametrize("text", ["0", "-1", "many", ""])
def test_a_senseless_number_of_attempts_is_a_bad_request(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", text)
    with pytest.raises(BadRequest, match="AWS_MAX_ATTEMPTS"):
        open_uri("s3://bucket/x?region=us-east-1")
