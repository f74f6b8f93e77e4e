from __future__ import annotations

from types import SimpleNamespace

import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store import Inflight, Store


def _everything(store: Store, make: SimpleNamespace) -> None:
    """One of each thing that the store writes."""
    store.begin_run(make.run_record())
    make.commit(store, "a.png")
    store.compact(make.DIGEST, 0, 1)
    store.quarantine(make.DIGEST, make.quarantine_entry("bad.png"))
    store.write_manifest(make.DIGEST, {})
    make.commit(store, "b.png")
    store.write_inflight("launch1", "actor0", Inflight(["a" * 16], False, "n", 1, 0.0))
    store.count_attempt("a" * 16, "worker", "t")


def test_the_same_run_goes_on_with_its_stored_shard_count_and_tracking_id(store: Store, make: SimpleNamespace) -> None:
    assert store.read_run() is None
    assert store.begin_run(make.run_record(shard_count=5)) == make.run_record(shard_count=5)
    store.update_run(mlflow_run_id="m1", survey={"mean": 0.5})
    again = store.begin_run(make.run_record(shard_count=9, created="later"))
    assert (again.shard_count, again.mlflow_run_id, again.survey) == (5, "m1", {"mean": 0.5})
    assert store.read_run() == again


def test_another_configuration_is_refused_with_every_difference(store: Store, make: SimpleNamespace) -> None:
    store.begin_run(make.run_record())
    other = make.run_record(
        digest="d2", input_uri="/other", config={"scale": 4, "rlff": {"num_frequencies": 256}, "added": None}
    )
    with pytest.raises(BadRequest) as error:
        store.begin_run(other)
    text = str(error.value)
    for line in ("digest: d1 -> d2", "input_uri: /pictures -> /other", "scale: 2 -> 4", "added: (not set) -> None"):
        assert line in text
    assert "num_frequencies" not in text and "--overwrite" in text and "another --output" in text
    assert store.read_run() == make.run_record()


def test_settings_outside_the_digest_may_change(store: Store, make: SimpleNamespace) -> None:
    """The number of actors is no reason to refuse a resume."""
    store.begin_run(make.run_record())
    store.begin_run(make.run_record(config={"scale": 2, "actors": 8}))
    with pytest.raises(BadRequest, match="teacher_sha256"):
        store.begin_run(make.run_record(teacher_sha256="cd" * 32))


def test_other_lr_images_are_another_input(store: Store, make: SimpleNamespace) -> None:
    """Catches a resumed run whose later tiles come from another degradation; older records do not say which."""
    store.begin_run(make.run_record())
    store.begin_run(make.run_record(lr_uri="/lr"))
    store.begin_run(make.run_record(lr_uri="/lr"), overwrite=True)
    assert store.begin_run(make.run_record(lr_uri="/lr")).lr_uri == "/lr"
    with pytest.raises(BadRequest, match="lr_uri: /lr -> /other"):
        store.begin_run(make.run_record(lr_uri="/other"))


def test_overwrite_removes_ours_and_spares_the_users_files(store: Store, make: SimpleNamespace) -> None:
    _everything(store, make)
    mine = ["notes.txt", "shards/readme.md", "index/part-1.parquet", "parts/mine.parquet", "parts/x/y/mine.txt",
            "quarantine/d1/why.txt", "mlflow.db", "inflight/notes.txt"]  # fmt: skip
    for name in mine:
        store.storage.write(name, b"mine")
    store.begin_run(make.run_record(digest="d2"), overwrite=True)
    assert store.read_run() == make.run_record(digest="d2")
    for digest in ("d1", "d2"):
        assert len(store.done(digest)) == 0 and store.list_quarantined(digest) == []
    assert store.read_inflight() == [] and store.list_attempts() == {} and store.read_manifest() is None
    assert store.storage.files("shards") == ["readme.md"] and store.storage.files("index") == ["part-1.parquet"]
    assert all(store.storage.read(name) == b"mine" for name in mine)


def test_overwrite_killed_at_any_change_leaves_no_mixed_store(make: SimpleNamespace) -> None:
    """Old shards under the new configuration would be taken for its own."""
    for k in range(100):
        objects = make.ObjectStore()
        store = Store.open("bucket/out", make.PyFileSystem(objects))
        _everything(store, make)
        objects.fail_at = len(objects.changes) + k
        new = make.run_record(digest="d2")
        try:
            store.begin_run(new, overwrite=True)
            break
        except OSError:
            objects.fail_at = None
        if k == 0:
            assert store.read_run() == make.run_record()  # nothing has happened yet
            continue
        assert store.read_run() is None
        with pytest.raises(BadRequest, match="digest: d2 -> d1"):  # the old run cannot go on with half its shards
            store.begin_run(make.run_record())
        assert store.begin_run(new) == new  # the new one may, and finishes the removal
        assert sorted(objects.objects) == ["bucket/out/run.json"]
    assert k > 8


@pytest.mark.parametrize("text", [b'{"format_version": 1', b'{"format_version": 1, "digest": "x"}', b"[]"])
def test_corrupt_run_json_is_named_and_can_be_overwritten(store: Store, make: SimpleNamespace, text: bytes) -> None:
    store.storage.write("run.json", text)
    for read in (store.read_run, lambda: store.begin_run(make.run_record())):
        with pytest.raises(IdcError, match=r"out/run\.json .*--overwrite"):
            read()
    assert store.begin_run(make.run_record(), overwrite=True) == store.read_run()


def test_a_newer_format_is_refused(store: Store, make: SimpleNamespace) -> None:
    store.storage.write_json("run.json", {"format_version": 2})
    with pytest.raises(BadRequest, match="format_version 2; this program reads 1"):
        store.begin_run(make.run_record())


def test_results_without_a_run_are_refused(store: Store, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    with pytest.raises(BadRequest, match=r"no run\.json"):
        store.begin_run(make.run_record())
    store.begin_run(make.run_record(), overwrite=True)
    assert len(store.done(make.DIGEST)) == 0


def test_a_folder_with_only_the_users_files_is_a_fresh_output(store: Store, make: SimpleNamespace) -> None:
    store.storage.write("shards/mine.txt", b"")
    assert store.begin_run(make.run_record()) == make.run_record()


def test_credentials_are_not_stored(store: Store, make: SimpleNamespace) -> None:
    record = make.run_record(
        input_uri="s3://key:s3cr3t@bucket/in", config={"tracking": "postgresql://u:s3cr3t@db/mlflow", "n": [1]}
    )
    store.begin_run(record)
    assert b"s3cr3t" not in (store.storage.read("run.json") or b"")
    assert store.begin_run(record).input_uri == "s3://bucket/in"


def test_what_defines_the_run_cannot_be_updated(store: Store, make: SimpleNamespace) -> None:
    with pytest.raises(IdcError, match="begin a run first"):
        store.update_run(mlflow_run_id="m")
    store.begin_run(make.run_record())
    with pytest.raises(ValueError, match="digest"):
        store.update_run(digest="d2")
    assert store.update_run(shard_count=1).shard_count == 1
    make.commit(store, "a.png")
    store.compact(make.DIGEST, 0, 1)
    with pytest.raises(ValueError, match="shard_count is 1"):
        store.update_run(shard_count=3)
