from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from idc_ray.errors import IdcError, RejectedImage
from idc_ray.images import MANIFEST_SCHEMA, ImageListing, downscale
from idc_ray.object_stores import open_uri
from idc_ray.pipeline import reading
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.reading import ENDS_THE_JOB, ReadImages, pixels, read_image
from idc_ray.regular_files import open_regular
from idc_ray.store.inflight import Inflight, read_inflight, write_inflight
from tests.pipeline.conftest import LAUNCH, ids, picture, small_config

A, B, C = ids("a", "b", "c")


def missing(*args: Any, **settings: Any) -> None:
    raise RejectedImage("missing", "gone")


@pytest.fixture
def job(job_and_found: tuple[Job, ImageListing]) -> Job:
    return job_and_found[0]


@pytest.fixture
def rows(job_and_found: tuple[Job, ImageListing]) -> list[dict[str, Any]]:
    """The manifest of a, b and c."""
    return job_and_found[1].manifest.to_pylist()


def send(read: ReadImages, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What comes back for a batch."""
    return read(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)).to_pylist()


def test_an_image_comes_back_as_it_is_with_what_its_record_needs(job: Job, rows: list[dict[str, Any]]) -> None:
    """Catches swapped sides, a lost hash (every image would count as changed) and HR that fills the object store."""
    row = read_image(job, rows[0])
    lr, hr = pixels(row, 2)
    assert np.array_equal(lr, downscale(picture(0), 2))
    assert lr.shape == (36, 35, 3)
    assert hr is None and row["hr"] == b""
    assert (row["image_id"], row["source"], row["code"], row["reason"]) == (A, "a.png", "", "")
    assert (row["mtime_ns"], row["source_bytes"]) == (rows[0]["mtime_ns"], rows[0]["size"])
    assert len(row["source_sha256"]) == 64
    assert row["read_seconds"] > 0


@pytest.mark.parametrize("settings", [{"method": "random", "labels": "real"}, {"method": "psnr_bicubic"}])
def test_hr_travels_where_the_method_or_the_labels_need_it(
    job: Job, rows: list[dict[str, Any]], settings: dict[str, object]
) -> None:
    job = dataclasses.replace(job, config=small_config(**settings))
    lr, hr = pixels(read_image(job, rows[1]), 2)
    assert hr is not None
    assert np.array_equal(hr, picture(1))
    assert np.array_equal(lr, downscale(hr, 2))


def test_a_bad_image_is_a_row_with_its_reason_and_the_same_columns(job: Job, rows: list[dict[str, Any]]) -> None:
    """Catches an exception, which would abort the job, and rows that do not fit into one block with good ones."""
    (Path(job.root) / "a.png").write_bytes(b"no picture")
    bad, good = (read_image(job, row) for row in rows[:2])
    assert bad["code"] == "not_an_image" and bad["reason"]
    assert {name: type(value) for name, value in bad.items()} == {name: type(v) for name, v in good.items()}


def test_an_image_that_vanished_is_no_reason_to_end_the_job(job: Job, rows: list[dict[str, Any]]) -> None:
    (Path(job.root) / "a.png").unlink()
    assert read_image(job, rows[0])["code"] == "missing"


def test_a_machine_that_cannot_see_the_input_ends_the_job(job: Job, rows: list[dict[str, Any]]) -> None:
    """Catches a cluster without a shared disk, where every image would be quarantined as missing."""
    Path(job.root).rename(Path(job.root).with_name("elsewhere"))
    row = read_image(job, rows[0])
    assert row["code"] == ENDS_THE_JOB
    assert job.input_uri in row["reason"] and "share" in row["reason"]


def test_a_missing_image_next_to_one_whose_name_is_no_utf8(job: Job, rows: list[dict[str, Any]]) -> None:
    """Catches an exception out of the reader: pyarrow cannot read the stored path of such a name."""
    job = dataclasses.replace(job, root="\0" + job.root)
    (Path(job.root[1:]) / "a.png").unlink()
    assert read_image(job, rows[0])["code"] == "missing"
    Path(job.root[1:]).rename(Path(job.root[1:]).with_name("elsewhere"))
    assert read_image(job, rows[0])["code"] == ENDS_THE_JOB


def test_an_inaccessible_input_ends_the_job_with_a_row(
    job: Job, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an exception out of the reader where a machine has no permission to list the input."""

    def refuse(path: str) -> None:
        raise PermissionError(path)

    job = dataclasses.replace(job, filesystem=SimpleNamespace(get_file_info=refuse))
    monkeypatch.setattr(reading, "load_instance", missing)
    assert read_image(job, rows[0])["code"] == ENDS_THE_JOB


def test_a_credential_that_no_longer_reads_ends_the_job_and_one_refused_image_does_not(
    job: Job, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a million images that are quarantined since the credential lists the bucket and reads nothing."""
    refused = {f"{job.root}/a.png"}

    def read(path: str) -> Any:
        if path in refused:
            raise PermissionError(path)
        return pa.PythonFile(open_regular(path))

    store = SimpleNamespace(get_file_info=job.filesystem.get_file_info, open_input_file=read)
    job = dataclasses.replace(job, filesystem=store, samples=(f"{job.root}/a.png", f"{job.root}/b.png"))
    assert read_image(job, rows[0])["code"] == "unreadable"
    refused.add(f"{job.root}/b.png")
    assert read_image(job, rows[0])["code"] == ENDS_THE_JOB
    assert read_image(job, rows[2])["code"] == ""
    job = dataclasses.replace(job, samples=(f"{job.root}/a.png",))
    assert read_image(job, rows[0])["code"] == "unreadable"


@pytest.mark.parametrize(
    ("error", "code"), [(MemoryError("9 GB"), "out_of_memory"), (ZeroDivisionError("odd"), "unexpected")]
)
def test_any_other_failure_is_the_images_own(
    job: Job, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    """Catches a decoder's surprise that ends the job of a million images, and one that leaves no trace."""

    def fail(*args: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(reading, "load_instance", fail)
    row = read_image(job, rows[0])
    assert row["code"] == code
    assert str(error) in row["reason"] and "Traceback" in row["traceback"]


def test_a_time_that_is_not_known_is_stored_as_0(job: Job, rows: list[dict[str, Any]]) -> None:
    """Catches rows of Parquet files that count as changed at each launch."""
    assert read_image(job, rows[0] | {"mtime_ns": -1})["mtime_ns"] == 0


def test_what_is_read_is_stated_and_withdrawn(
    job: Job, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an image that kills its reader unnoticed, and an image that was read but counts as a death."""
    load, seen = reading.load_instance, []

    def look(*args: Any, **settings: Any) -> Any:
        seen.extend(read_inflight(job.store, LAUNCH))
        return load(*args, **settings)

    monkeypatch.setattr(reading, "load_instance", look)
    send(ReadImages(job, isolated=True, node=lambda: "here"), rows[:1])
    send(ReadImages(job), rows[1:])
    stated = [(record.images, record.isolated, record.node_id) for record in seen]
    assert stated == [([A], True, "here"), ([B, C], False, ""), ([B, C], False, "")]
    assert read_inflight(job.store) == []


def test_an_image_that_killed_its_readers_is_not_read_again(
    job: Job, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a job that repeats indefinitely an image that crashes the decoder."""
    allowed = job.config.store.attempts
    tried: list[str] = []
    load = reading.load_instance

    class Killed(BaseException):
        """Ends a reader before it can say so."""

    def die(*args: Any, **settings: Any) -> None:
        tried.append("once")
        raise Killed

    monkeypatch.setattr(reading, "load_instance", die)
    monkeypatch.setattr("idc_ray.pipeline.crashes.clear_inflight", lambda *args: None)  # a dead process ends nothing
    read = ReadImages(job, node=lambda: "here")
    for _ in range(allowed + 1):  # once in company
        with pytest.raises(Killed):
            send(read, rows[:2])
    monkeypatch.setattr(reading, "load_instance", load)
    bad, good = send(read, rows[:2])
    assert (bad["code"], bad["attempts"], len(tried)) == ("killed_reader", allowed, allowed + 1)
    assert f"{allowed} times" in bad["reason"]
    assert (good["image_id"], good["code"]) == (B, "")


@pytest.mark.parametrize("error", [OSError(28, "no space left"), IdcError("damaged")])
def test_an_output_that_cannot_be_written_is_left_to_the_worker_to_tell(
    job: Job, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Catches a full disk that aborts the job from the reader, with Ray's traceback instead of a sentence."""

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr("idc_ray.pipeline.crashes.write_inflight", fail)
    monkeypatch.setattr("idc_ray.pipeline.crashes.clear_inflight", fail)
    assert [row["code"] for row in send(ReadImages(job), rows)] == ["", "", ""]


def test_a_death_with_its_machine_is_not_the_images_fault(job: Job, rows: list[dict[str, Any]]) -> None:
    for _ in range(2 * job.config.store.attempts):
        write_inflight(job.store, LAUNCH, f"read-{A}", Inflight([A], True, "gone", 1, 0.0))
        (row,) = send(ReadImages(job, node=lambda: "here", node_lives=lambda node: node == "here"), rows[:1])
        assert row["code"] == ""


def test_a_store_that_is_down_ends_the_job_and_blames_no_image(
    job: Job, rows: list[dict[str, Any]], s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an outage of the input after which every image is quarantined as unreadable."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("idc_ray.images.instance._RETRY_AFTER_S", (0.0,))
    s3.put("bucket", "photos/there.png", b"no image")
    filesystem, _ = open_uri(s3.uri("bucket"))
    job = dataclasses.replace(job, filesystem=filesystem, root="bucket/photos", input_uri="s3://bucket/photos")
    row = rows[0] | {"path": "bucket/photos/there.png"}
    assert read_image(job, row)["code"] == "not_an_image"
    assert read_image(job, row | {"path": "bucket/photos/gone.png"})["code"] == "missing"
    for error in ("SlowDown", "AccessDenied"):
        s3.fault = lambda request, error=error: error
        out = read_image(job, row)
        assert out["code"] == ENDS_THE_JOB and "s3://bucket/photos" in out["reason"]
        assert "same command" in out["reason"]
    s3.fault = lambda request: "AccessDenied" if request.key.endswith("there.png") else None
    assert read_image(job, row)["code"] == "unreadable"  # this one alone
