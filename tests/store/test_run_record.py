from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.store.attempts import count_attempt
from idc_ray.store.compaction import compact
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.inflight import Inflight, read_inflight, write_inflight
from idc_ray.store.manifest import read_manifest, write_manifest
from idc_ray.store.quarantine import list_quarantined, quarantine_image
from idc_ray.store.run_record import FORMAT_VERSION, begin_run, read_run, update_run
from tests.crashes import list_attempts


def _everything(store: StorageFolder, make: SimpleNamespace) -> None:
    """One of each thing that the store writes."""
    begin_run(store, make.run_record())
    make.commit(store, "a.png")
    compact(store, make.DIGEST, 0, 1)
    quarantine_image(store, make.DIGEST, make.quarantine_entry("bad.png"))
    write_manifest(store, make.DIGEST, 24, {})
    make.commit(store, "b.png")
    write_inflight(store, "launch1", "actor0", Inflight(["a" * 16], False, "n", 1, 0.0))
    count_attempt(store, "a" * 16, "worker", "t")


def test_the_same_run_continues_with_its_stored_shard_count_and_tracking_id(
    store: StorageFolder, make: SimpleNamespace
) -> None:
    assert read_run(store) is None
    assert begin_run(store, make.run_record(shard_count=5)) == make.run_record(shard_count=5)
    update_run(store, mlflow_run_id="m1", survey={"mean": 0.5})
    again = begin_run(store, make.run_record(shard_count=9, created="later"))
    assert (again.shard_count, again.mlflow_run_id, again.survey) == (5, "m1", {"mean": 0.5})
    assert read_run(store) == again


def test_another_configuration_is_refused_with_every_difference(store: StorageFolder, make: SimpleNamespace) -> None:
    begin_run(store, make.run_record())
    other = make.run_record(
        digest="d2", input_uri="/other", config={"scale": 4, "rlff": {"num_frequencies": 256}, "added": None}
    )
    with pytest.raises(BadRequest) as error:
        begin_run(store, other)
    text = str(error.value)
    for line in ("digest: d1 -> d2", "input_uri: /pictures -> /other", "scale: 2 -> 4", "added: (not set) -> None"):
        assert line in text
    assert "num_frequencies" not in text and "--overwrite" in text and "another --output" in text
    assert read_run(store) == make.run_record()


def test_settings_outside_the_digest_may_change(store: StorageFolder, make: SimpleNamespace) -> None:
    """The number of actors is no reason to refuse a resume."""
    begin_run(store, make.run_record())
    begin_run(store, make.run_record(config={"scale": 2, "actors": 8}))
    with pytest.raises(BadRequest, match="teacher_sha256"):
        begin_run(store, make.run_record(teacher_sha256="cd" * 32))


def test_other_lr_images_are_another_input(store: StorageFolder, make: SimpleNamespace) -> None:
    """Catches a resumed run whose later tiles come from another degradation; older records do not say which."""
    begin_run(store, make.run_record())
    begin_run(store, make.run_record(lr_uri="/lr"))
    begin_run(store, make.run_record(lr_uri="/lr"), overwrite=True)
    assert begin_run(store, make.run_record(lr_uri="/lr")).lr_uri == "/lr"
    with pytest.raises(BadRequest, match="lr_uri: /lr -> /other"):
        begin_run(store, make.run_record(lr_uri="/other"))


def test_overwrite_removes_the_runs_files_and_keeps_the_users(store: StorageFolder, make: SimpleNamespace) -> None:
    _everything(store, make)
    mine = ["notes.txt", "shards/readme.md", "index/part-1.parquet", "parts/mine.parquet", "parts/x/y/mine.txt",
            "quarantine/d1/why.txt", "mlflow.db", "inflight/notes.txt"]  # fmt: skip
    for name in mine:
        store.write(name, b"mine")
    begin_run(store, make.run_record(digest="d2"), overwrite=True)
    assert read_run(store) == make.run_record(digest="d2")
    for digest in ("d1", "d2"):
        assert len(find_done(store, digest)) == 0 and list_quarantined(store, digest) == []
    assert read_inflight(store) == [] and list_attempts(store) == {} and read_manifest(store) is None
    assert store.files("shards") == ["readme.md"] and store.files("index") == ["part-1.parquet"]
    assert all(store.read(name) == b"mine" for name in mine)


def test_overwrite_killed_at_any_change_leaves_no_mixed_store(make: SimpleNamespace) -> None:
    """Old shards under the new configuration would be mistaken for its own."""
    for k in range(100):
        objects = make.ObjectStore()
        store = StorageFolder(make.PyFileSystem(objects), "bucket/out", "mock://bucket/out")
        _everything(store, make)
        objects.fail_at = len(objects.changes) + k
        new = make.run_record(digest="d2")
        try:
            begin_run(store, new, overwrite=True)
            break
        except OSError:
            objects.fail_at = None
        if k == 0:
            assert read_run(store) == make.run_record()  # nothing has happened yet
            continue
        assert read_run(store) is None
        with pytest.raises(BadRequest, match="digest: d2 -> d1"):  # the old run cannot go on with half its shards
            begin_run(store, make.run_record())
        assert begin_run(store, new) == new  # the new one may, and finishes the removal
        assert sorted(objects.objects) == ["bucket/out/run.json"]
    assert k > 8


@pytest.mark.parametrize("text", [b'{"format_version": 1', b'{"format_version": 1, "digest": "x"}', b"[]"])
def test_corrupt_run_json_is_named_and_can_be_overwritten(
    store: StorageFolder, make: SimpleNamespace, text: bytes
) -> None:
    store.write("run.json", text)
    for read in (lambda: read_run(store), lambda: begin_run(store, make.run_record())):
        with pytest.raises(IdcError, match=r"out/run\.json .*--overwrite"):
            read()
    assert begin_run(store, make.run_record(), overwrite=True) == read_run(store)


def test_another_input_is_refused_with_advice_to_use_a_separate_output(
    store: StorageFolder, make: SimpleNamespace
) -> None:
    """Catches several jobs of disjoint inputs that find out one by one that they cannot share an output."""
    begin_run(store, make.run_record())
    with pytest.raises(
        BadRequest, match=r"(?s)input_uri: /pictures -> /more.*to a separate output.*--data '\[a/, b/\]'"
    ):
        begin_run(store, make.run_record(input_uri="/more"))


def test_a_newer_format_is_refused(store: StorageFolder, make: SimpleNamespace) -> None:
    store.write_json("run.json", {"format_version": 3})
    with pytest.raises(BadRequest, match=r"format_version 3; this version reads \(1, 2\)"):
        begin_run(store, make.run_record())


def test_a_run_of_version_1_is_continued_and_becomes_one_of_this_version(
    store: StorageFolder, make: SimpleNamespace
) -> None:
    """Catches an earlier release that continues it and does not see the parts of this one."""
    begin_run(store, make.run_record(format_version=1))
    assert begin_run(store, make.run_record()) == read_run(store) == make.run_record()
    assert json.loads(store.read("run.json") or b"")["format_version"] == FORMAT_VERSION == 2


def test_results_without_a_run_are_refused(store: StorageFolder, make: SimpleNamespace) -> None:
    make.commit(store, "a.png")
    with pytest.raises(BadRequest, match=r"no run\.json"):
        begin_run(store, make.run_record())
    begin_run(store, make.run_record(), overwrite=True)
    assert len(find_done(store, make.DIGEST)) == 0


def test_a_folder_with_only_the_users_files_is_a_fresh_output(store: StorageFolder, make: SimpleNamespace) -> None:
    store.write("shards/mine.txt", b"")
    assert begin_run(store, make.run_record()) == make.run_record()


def test_credentials_are_not_stored(store: StorageFolder, make: SimpleNamespace) -> None:
    record = make.run_record(
        input_uri="s3://key:s3cr3t@bucket/in", config={"tracking": "postgresql://u:s3cr3t@db/mlflow", "n": [1]}
    )
    begin_run(store, record)
    assert b"s3cr3t" not in (store.read("run.json") or b"")
    assert begin_run(store, record).input_uri == "s3://bucket/in"


def test_what_defines_the_run_cannot_be_updated(store: StorageFolder, make: SimpleNamespace) -> None:
    with pytest.raises(IdcError, match="begin a run first"):
        update_run(store, mlflow_run_id="m")
    begin_run(store, make.run_record())
    with pytest.raises(ValueError, match="digest"):
        update_run(store, digest="d2")
    with pytest.raises(ValueError, match="shard_count"):
        update_run(store, shard_count=3)
