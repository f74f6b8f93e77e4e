from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import MANIFEST_SCHEMA, ImageListing, decode_png
from idc_ray.pipeline import worker as module
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.reading import ENDS_THE_JOB, ReadImages, read_image
from idc_ray.pipeline.worker import CondenseWorker, SurveyWorker
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.inflight import Inflight, read_inflight, write_inflight
from idc_ray.store.parts import list_parts, read_part
from idc_ray.store.quarantine import list_quarantined, quarantined_ids
from idc_ray.store.records import ImageRecord
from tests.crashes import list_attempts
from tests.pipeline.conftest import DIGEST, LAUNCH, ids, small_config, teacher_bytes

A, B, C = ids("a", "b", "c")
HERE = "node1"
TEACHER = teacher_bytes()

Result = Condensed | Exception


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """One machine without GPUs, and an object store that hands back what it is given."""
    monkeypatch.setattr(module.ray, "get_gpu_ids", list)
    monkeypatch.setattr(module.ray, "get", lambda reference: reference)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: HERE))
    monkeypatch.setattr(module, "node_lives", HERE.__eq__)


@pytest.fixture
def job(job_and_found: tuple[Job, ImageListing]) -> Job:
    return job_and_found[0]


@pytest.fixture
def rows(job_and_found: tuple[Job, ImageListing]) -> dict[str, dict[str, Any]]:
    """a, b and c, read."""
    job, listing = job_and_found
    return {row["image_id"]: read_image(job, row) for row in listing.manifest.to_pylist()}


def two_tiles(task: ImageTask) -> Condensed:
    """A result at once: the picture's first two tiles, enlarged by repetition."""
    tiles = np.stack([task.lr[:16, :16], task.lr[:16, 16:32]])
    return Condensed(tiles, tiles.repeat(2, 1).repeat(2, 2), [(0, 0), None], 4, 2.0, 1.0, [2.0], [1.0], False)


class FakeCondenser:
    """Answers with ``results`` (or raises them, where an exception is for a whole call) and records the calls."""

    def __init__(self, answer: Callable[[Sequence[ImageTask], bool], list[Result]]) -> None:
        self.answer = answer
        self.calls: list[tuple[list[str], bool]] = []
        self.stated: list[tuple[list[str], bool]] = []
        self.sources: list[str] = []
        self.store: StorageFolder | None = None

    def condense(self, tasks: Sequence[ImageTask], frugal: bool = False) -> list[Result]:
        self.calls.append(([task.image_id for task in tasks], frugal))
        if self.store is not None:
            inflight = read_inflight(self.store, LAUNCH)
            self.stated += [(record.images, record.isolated) for record in inflight]
            self.sources += [record.source for record in inflight]
        return self.answer(tasks, frugal)


def worker_with(
    job: Job,
    answer: Callable[[Sequence[ImageTask], bool], list[Result]] = lambda tasks, frugal: [two_tiles(t) for t in tasks],
    isolated: bool = False,
) -> tuple[CondenseWorker, FakeCondenser]:
    worker = CondenseWorker(job, TEACHER, isolated)
    fake = FakeCondenser(answer)
    fake.store = job.store
    worker.condenser = fake  # type: ignore[assignment]
    return worker, fake


def send(worker: CondenseWorker | SurveyWorker, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """What comes back for a batch, as the driver reads it."""
    return [json.loads(text) for text in worker(pa.Table.from_pylist(list(rows)))["status"].to_pylist()]


def part_of(job: Job, image_id: str) -> tuple[list[dict[str, Any]], ImageRecord]:
    """Tiles and record of a finished image."""
    parts = [read_part(job.store, name) for name in list_parts(job.store, DIGEST)]
    (part,) = [part for part in parts if image_id in part.records]
    return dict(part.tables())[image_id].to_pylist(), part.records[image_id]


def outcomes(statuses: list[dict[str, Any]]) -> dict[str, str]:
    return {status["image_id"]: status["outcome"] for status in statuses}


def test_rows_that_fill_a_batch_are_no_images(job_and_found: tuple[Job, ImageListing], rows: dict[str, Any]) -> None:
    """Catches an image without a name that is quarantined, or counted."""
    job, listing = job_and_found
    manifest = pa.Table.from_pylist([listing.manifest.to_pylist()[0], dict.fromkeys(MANIFEST_SCHEMA.names)])
    _, nothing = ReadImages(job)(manifest).to_pylist()
    assert ReadImages(job)(manifest.slice(1)).to_pylist() == [nothing], "a batch of nothing else"
    assert nothing.keys() == rows[A].keys()
    worker, condenser = worker_with(job)
    assert outcomes(send(worker, nothing, rows[A], nothing)) == {A: "done"}
    assert condenser.calls == [([A], False)]
    assert not quarantined_ids(job.store, DIGEST)


def test_what_is_condensed_is_committed_with_all_that_belongs_to_it(job: Job, rows: dict[str, Any]) -> None:
    """Catches tiles without their image, source or labels, and a status that disagrees with the record."""
    worker, _ = worker_with(job)
    (status,) = send(worker, rows[A])
    tiles, record = part_of(job, A)
    assert (status["outcome"], status["loss_start"], status["loss_end"]) == ("done", 2.0, 1.0)
    assert {"read", "commit"} <= status["seconds"].keys()
    assert (record.source, record.tiles, record.candidate_tiles) == ("a.png", 2, 4)
    assert (record.source_bytes, record.source_sha256) == (rows[A]["source_bytes"], rows[A]["source_sha256"])
    assert record.source_mtime_ns == (Path(job.root) / "a.png").stat().st_mtime_ns
    assert (record.lr_height, record.lr_width, record.loss_start, record.loss_end) == (36, 35, 2.0, 1.0)
    first, second = tiles
    assert (first["tile_index"], first["top"], first["left"]) == (0, 0, 0)
    assert (second["tile_index"], second["top"], second["left"]) == (1, None, None)
    assert decode_png(first["lr"]["bytes"]).shape == (16, 16, 3)
    assert decode_png(first["hr"]["bytes"]).shape == (32, 32, 3)


def test_a_real_teacher_condenses_the_images_of_a_batch(job: Job, rows: dict[str, Any]) -> None:
    """Catches a worker and a condenser that do not fit each other."""
    statuses = send(CondenseWorker(job, TEACHER, False), rows[A], rows[B])
    assert outcomes(statuses) == {A: "done", B: "done"}
    assert [part_of(job, image_id)[1].tiles for image_id in (A, B)] == [3, 3]
    assert read_inflight(job.store) == []


def test_an_image_that_could_not_be_read_is_set_aside_with_its_reason(job: Job, rows: dict[str, Any]) -> None:
    """Catches a bad image that is condensed from no pixels, or lost without a trace."""
    bad = rows[A] | {"code": "truncated", "reason": "it ends early", "traceback": "T", "attempts": 3}
    worker, fake = worker_with(job)
    assert outcomes(send(worker, bad, rows[B])) == {A: "quarantined", B: "done"}
    assert fake.calls == [([B], False)]
    (entry,) = list_quarantined(job.store, DIGEST)
    assert (entry.image_id, entry.source, entry.code, entry.reason) == (A, "a.png", "truncated", "it ends early")
    assert (entry.traceback, entry.attempts, entry.launch) == ("T", 3, LAUNCH)


def test_an_exception_of_one_image_leaves_the_other_alone(job: Job, rows: dict[str, Any]) -> None:
    """Catches a batch that is lost, or mixed up, because of one of its images."""

    def answer(tasks: Sequence[ImageTask], frugal: bool) -> list[Result]:
        return [ValueError("flat") if task.image_id == A else two_tiles(task) for task in tasks]

    worker, fake = worker_with(job, answer)
    assert outcomes(send(worker, rows[A], rows[B])) == {A: "quarantined", B: "done"}
    assert len(fake.calls) == 1
    (entry,) = list_quarantined(job.store, DIGEST)
    assert (entry.image_id, entry.code, entry.reason) == (
        A,
        "condensation_failed",
        "ValueError while condensing the image: flat",
    )
    assert "ValueError" in entry.traceback
    assert set(find_done(job.store, DIGEST)) == {B}


def test_a_loss_that_is_not_a_number_is_one_images_failure(job: Job, rows: dict[str, Any]) -> None:
    """Catches a record that cannot be made and aborts the job with Ray's traceback."""

    def answer(tasks: Sequence[ImageTask], frugal: bool) -> list[Result]:
        return [dataclasses.replace(two_tiles(t), loss_end=float("nan" if t.image_id == A else 1.0)) for t in tasks]

    assert outcomes(send(worker_with(job, answer)[0], rows[A], rows[B])) == {A: "quarantined", B: "done"}
    (entry,) = list_quarantined(job.store, DIGEST)
    assert entry.code == "condensation_failed" and "loss of a.png is nan" in entry.reason


def test_a_call_that_fails_is_repeated_for_each_image_alone(job: Job, rows: dict[str, Any]) -> None:
    """Catches images that are quarantined because another one in their call failed."""

    def answer(tasks: Sequence[ImageTask], frugal: bool) -> list[Result]:
        if A in (task.image_id for task in tasks):
            raise RuntimeError("odd")
        return [two_tiles(task) for task in tasks]

    worker, fake = worker_with(job, answer)
    assert outcomes(send(worker, rows[A], rows[B])) == {A: "quarantined", B: "done"}
    assert fake.calls == [([A, B], False), ([A], False), ([B], False)]


@pytest.mark.parametrize("enough_if_frugal", [True, False])
def test_too_little_memory_is_met_by_less_work_at_a_time(
    job: Job, rows: dict[str, Any], enough_if_frugal: bool
) -> None:
    """Catches images that are given up although they fit alone, or with what is kept between steps left out."""

    def answer(tasks: Sequence[ImageTask], frugal: bool) -> list[Result]:
        if len(tasks) > 1 or (tasks[0].image_id == A and not (frugal and enough_if_frugal)):
            raise MemoryError("9 GB")
        return [two_tiles(task) for task in tasks]

    worker, fake = worker_with(job, answer)
    expected = "done" if enough_if_frugal else "quarantined"
    assert outcomes(send(worker, rows[A], rows[B])) == {A: expected, B: "done"}
    assert fake.calls == [([A, B], False), ([A], False), ([A], True), ([B], False)]
    if not enough_if_frugal:
        (entry,) = list_quarantined(job.store, DIGEST)
        assert entry.code == "out_of_memory" and "9 GB" in entry.reason


def test_a_gpu_that_no_longer_works_ends_the_worker_and_not_its_images(
    job: Job, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a broken GPU on which every further image is quarantined, or not used to measure the mean difficulty."""

    class Exited(BaseException):
        """What ends the process."""

    def leave(code: int) -> None:
        raise Exited

    monkeypatch.setattr(module, "device_works", lambda device: False)
    monkeypatch.setattr(module.os, "_exit", leave)
    worker, _ = worker_with(job, lambda tasks, frugal: [RuntimeError("CUDA error") for _ in tasks])
    with pytest.raises(Exited):
        send(worker, rows[A], rows[B])
    assert quarantined_ids(job.store, DIGEST) == set()
    survey = SurveyWorker(job, TEACHER)
    monkeypatch.setattr(survey.condenser, "difficulty", lambda lr: 1 / 0)
    with pytest.raises(Exited):
        send(survey, rows[A])


def test_what_is_committed_is_skipped_when_its_batch_comes_again(job: Job, rows: dict[str, Any]) -> None:
    """Catches work that Ray repeats since it lost the answer."""
    send(worker_with(job)[0], rows[A], rows[B])
    worker, fake = worker_with(job)
    assert outcomes(send(worker, rows[A], rows[B], rows[C])) == {A: "skipped", B: "skipped", C: "done"}
    assert fake.calls == [([C], False)]


def test_images_that_are_condensed_together_are_one_part(job: Job, rows: dict[str, Any]) -> None:
    """Catches a file for each image; and, where they are tried alone, a finished image that waits for the next."""
    send(worker_with(job)[0], rows[A], rows[B], rows[C])
    assert len(list_parts(job.store, DIGEST)) == 1

    seen: list[int] = []

    def answer(tasks: Sequence[ImageTask], frugal: bool) -> list[Result]:
        seen.append(len(list_parts(job.store, DIGEST)))
        if len(tasks) > 1:
            raise RuntimeError("odd")
        return [two_tiles(tasks[0])]

    for name in list_parts(job.store, DIGEST):
        job.store.delete(name)
    send(worker_with(job, answer)[0], rows[A], rows[B], rows[C])
    assert seen == [0, 0, 1, 2]


def test_a_gpu_condenses_the_next_images_while_the_last_ones_are_committed(
    job: Job, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a GPU that waits for the store, and a status that comes before its commit."""
    second_begun, commit = threading.Event(), module.commit_images

    def commit_late(*arguments: Any) -> None:
        assert second_begun.wait(10)
        commit(*arguments)

    def answer(tasks: Sequence[ImageTask], frugal: bool) -> list[Result]:
        if tasks[0].image_id != A:
            assert not list_parts(job.store, DIGEST)
            second_begun.set()
        return [two_tiles(task) for task in tasks]

    monkeypatch.setattr(module, "commit_images", commit_late)
    worker, fake = worker_with(job, answer)
    worker.together = 1
    assert outcomes(send(worker, rows[A], rows[B])) == {A: "done", B: "done"}
    assert fake.calls == [([A], False), ([B], False)] and fake.stated == [([A, B], False)] * 2
    assert len(list_parts(job.store, DIGEST)) == 2


def test_images_are_done_only_if_their_own_commit_succeeded(
    job: Job, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "commit_images", fail)
    worker, _ = worker_with(job)
    worker.together = 1
    (status,) = send(worker, rows[A], rows[B])
    assert "disk full" in json.dumps(status)
    assert not list_parts(job.store, DIGEST)


def test_where_a_gpu_has_company_that_fails_each_image_is_committed_before_the_next_is_tried(
    job: Job, rows: dict[str, Any]
) -> None:
    seen: list[int] = []

    def answer(tasks: Sequence[ImageTask], frugal: bool) -> list[Result]:
        seen.append(len(list_parts(job.store, DIGEST)))
        if len(tasks) > 1:
            raise RuntimeError("odd")
        return [two_tiles(tasks[0])]

    worker, _ = worker_with(job, answer)
    worker.together = 3
    send(worker, rows[A], rows[B], rows[C])
    assert seen == [0, 0, 1, 2]


def test_after_a_death_each_image_of_its_batch_runs_alone(job: Job, rows: dict[str, Any]) -> None:
    """Catches an image that kills every worker unrecognised, since it always dies in company."""
    write_inflight(job.store, LAUNCH, A, Inflight([A, B], False, HERE, 1, 0.0))
    worker, fake = worker_with(job)
    assert outcomes(send(worker, rows[A], rows[B])) == {A: "done", B: "done"}
    assert fake.calls == [([A], False), ([B], False)]
    assert fake.stated == [([A], True), ([B], True)]
    assert list_attempts(job.store) == {}
    assert read_inflight(job.store) == []


def test_what_runs_is_stated_while_it_runs(job: Job, rows: dict[str, Any]) -> None:
    """Catches a record that is written too late to identify the image, and suspects that are not run in isolation."""
    worker, fake = worker_with(job)
    send(worker, rows[A], rows[B])
    assert fake.stated == [([A, B], False)]
    assert fake.sources == [rows[A]["source"]]
    assert send(worker) == [], "a batch of which all images were quarantined by the reader"
    worker, fake = worker_with(job, isolated=True)
    send(worker, rows[C])
    assert fake.stated == [([C], True)]


def test_an_image_over_which_enough_workers_died_is_quarantined(job: Job, rows: dict[str, Any]) -> None:
    """Catches a job that never ends because one image kills every worker that takes it."""
    outcome = {}
    for number in range(job.config.store.attempts):
        write_inflight(job.store, LAUNCH, A, Inflight([A], True, HERE, 7, float(number)))
        worker, fake = worker_with(job, lambda tasks, frugal: [ValueError("not now") for _ in tasks])
        outcome = outcomes(send(worker, rows[A]))
    assert outcome == {A: "quarantined"}
    assert fake.calls == []
    (entry,) = list_quarantined(job.store, DIGEST)
    assert (entry.code, entry.attempts) == ("killed_worker", job.config.store.attempts)


@pytest.mark.parametrize("error", [IdcError("mend it"), OSError(28, "no space left")])
def test_an_output_that_cannot_be_written_ends_the_job_with_a_row(
    job: Job, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Catches a full disk that quarantines every image, and an image that is blamed for it at the next attempt."""

    def fail(*args: Any) -> None:
        raise error

    monkeypatch.setattr("idc_ray.pipeline.worker.commit_images", fail)
    worker, _ = worker_with(job)
    (status,) = send(worker, rows[A], rows[B])
    assert (status["outcome"], status["exit_code"]) == ("stopped", 1)
    assert ("mend it" if isinstance(error, IdcError) else "no space left") in status["reason"]
    assert read_inflight(job.store) == []
    assert quarantined_ids(job.store, DIGEST) == set()


def test_an_output_on_which_nothing_at_all_can_be_written_ends_the_job_too(
    job: Job, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the same where already the statement before the work, and the one after, cannot be written."""

    def fail(*args: Any) -> None:
        raise OSError(30, "read-only")

    worker, _ = worker_with(job)
    monkeypatch.setattr("idc_ray.pipeline.crashes.write_inflight", fail)
    monkeypatch.setattr("idc_ray.pipeline.crashes.clear_inflight", fail)
    (status,) = send(worker, rows[A])
    assert status["outcome"] == "stopped" and "read-only" in status["reason"]


def test_a_machine_without_the_input_ends_the_job(job: Job, rows: dict[str, Any]) -> None:
    worker, fake = worker_with(job)
    (status,) = send(worker, rows[B], rows[A] | {"code": ENDS_THE_JOB, "reason": "no such folder here"})
    assert (status["outcome"], status["exit_code"]) == ("stopped", BadRequest.exit_code)
    assert status["reason"] == "no such folder here"
    assert fake.calls == []


@pytest.mark.parametrize("kind", ["output", "teacher"])
def test_a_worker_that_failed_to_start_reports_it_with_its_first_batch(
    job: Job, rows: dict[str, Any], kind: str
) -> None:
    """Catches an exception in the constructor, which Ray repeats again and again instead of telling it."""
    if kind == "output":  # as on a machine without the shared folder
        job = dataclasses.replace(job, store=resolve(str(Path(job.root).with_name("elsewhere"))))
    data = TEACHER if kind == "output" else b"no checkpoint"
    for worker in (CondenseWorker(job, data, False), SurveyWorker(job, data)):
        (status,) = send(worker, rows[A])
        assert (status["outcome"], status["exit_code"]) == ("stopped", 2)
        assert ("cannot access the output" if kind == "output" else "is not a checkpoint") in status["reason"]


def test_the_survey_measures_what_can_be_read(job: Job, rows: dict[str, Any]) -> None:
    """Catches a survey that fails on a bad image, or counts it as easy."""
    bad = rows[B] | {"code": "truncated", "lr": b"", "height": 0, "width": 0}
    first, second = send(SurveyWorker(job, TEACHER), rows[A], bad)
    assert (first["image_id"], first["height"], first["width"]) == (A, 36, 35)
    assert first["difficulty"] > 0
    assert (second["image_id"], second["difficulty"], second["height"]) == (B, None, 0)
    assert read_inflight(job.store) == []


def test_an_image_that_fails_is_left_out_of_the_survey(
    job: Job, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches one image too large for the memory that ends the job before it has begun."""
    worker = SurveyWorker(job, TEACHER)
    measure = worker.condenser.difficulty

    def fail_once(lr: Any) -> float:
        monkeypatch.setattr(worker.condenser, "difficulty", measure)
        raise MemoryError("9 GB")

    monkeypatch.setattr(worker.condenser, "difficulty", fail_once)
    first, second = send(worker, rows[A], rows[B])
    assert first["difficulty"] is None and second["difficulty"] > 0
    assert "a.png is not used to measure the mean difficulty: MemoryError: 9 GB" in caplog.text


def test_real_labels_reach_the_store_pixel_by_pixel(job_and_found: tuple[Job, ImageListing]) -> None:
    """Catches LR and HR of different places."""
    job, listing = job_and_found
    job = dataclasses.replace(job, config=small_config(method="random", labels="real"))
    row = read_image(job, listing.manifest.to_pylist()[0])
    send(CondenseWorker(job, TEACHER, False), row)
    hr = np.frombuffer(row["hr"], np.uint8).reshape(72, 70, 3)
    lr = np.frombuffer(row["lr"], np.uint8).reshape(36, 35, 3)
    for tile in part_of(job, A)[0]:
        top, left = tile["top"], tile["left"]
        assert np.array_equal(decode_png(tile["lr"]["bytes"]), lr[top : top + 16, left : left + 16])
        expected = hr[2 * top : 2 * top + 32, 2 * left : 2 * left + 32]
        assert np.array_equal(decode_png(tile["hr"]["bytes"]), expected)
