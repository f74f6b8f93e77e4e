"""What Ray Data is asked for; that it works together is for tests/e2e."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import ImageListing
from idc_ray.pipeline import stream
from idc_ray.pipeline.batches import Batches
from idc_ray.pipeline.cluster import PoolPlan
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.reading import ReadImages
from idc_ray.pipeline.stopping import as_row
from idc_ray.pipeline.stream import condense_stream, survey_stream
from idc_ray.pipeline.worker import CondenseWorker, SurveyWorker

CPUS = PoolPlan({"num_cpus": 1.0}, 1, 3, 2, "CPUs")
GPUS = PoolPlan({"num_gpus": 0.5}, 2, 4, 3, "GPUs")


class FakeDataset:
    """Remembers what was asked for; its rows are blocks of ``answers``."""

    def __init__(self, blocks: list[pa.Table], answers: list[list[dict[str, Any]]]) -> None:
        self.blocks, self.answers = blocks, answers
        self.taken, self.ended = 0, False

    def map_batches(self, function: Any, **options: Any) -> FakeDataset:
        if isinstance(function, ReadImages):
            assert options.pop("batch_format") == "pyarrow"
            self.reader, self.read_together, self.reading = function, options.pop("batch_size"), options
        else:
            self.worker, self.working = function, options
        return self

    def iter_batches(self, **options: Any) -> Iterator[pa.Table]:
        self.running = self._run()  # held: that nobody refers to it any more must not be what ends it
        return self.running

    def _run(self) -> Iterator[pa.Table]:
        try:
            for rows in self.answers:
                self.taken += 1
                yield pa.table({"status": [json.dumps(row) for row in rows]})
        finally:
            self.ended = True


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> list[FakeDataset]:
    """Those that were made. Each answers with two blocks."""
    made: list[FakeDataset] = []

    def from_blocks(blocks: list[pa.Table]) -> FakeDataset:
        made.append(FakeDataset(blocks, [[{"outcome": "done", "n": 0}, {"outcome": "done", "n": 1}], [{"n": 2}]]))
        return made[-1]

    monkeypatch.setattr(stream.ray.data, "from_blocks", from_blocks)
    return made


def manifest(rows: int) -> pa.Table:
    return pa.table({"image_id": [str(i) for i in range(rows)]})


def batches(rows: int, size: int) -> Batches:
    return Batches(manifest(rows), size, -(-rows // size))


@pytest.mark.parametrize(("rows", "batch", "blocks"), [(1, 4, 1), (8, 4, 2), (9, 4, 3), (40, 1, 5), (41, 4, 4)])
def test_blocks_hold_whole_batches_and_are_not_too_many(
    datasets: list[FakeDataset], job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch,
    rows: int, batch: int, blocks: int,
) -> None:  # fmt: skip
    """Catches a worker that waits for another block to fill its batch, lost rows, and a task for each of a million."""
    monkeypatch.setattr(stream, "MAX_BLOCKS", 5)
    list(condense_stream(batches(rows, batch), job_and_found[0], None, CPUS, False))  # type: ignore[arg-type]
    (made,) = datasets
    assert pa.concat_tables(made.blocks).equals(manifest(rows))
    assert len(made.blocks) == blocks <= 5
    assert all(block.num_rows % batch == 0 for block in made.blocks[:-1])


def test_workers_get_the_resources_of_the_pool_and_whole_batches(
    datasets: list[FakeDataset], job_and_found: tuple[Job, ImageListing]
) -> None:
    job = job_and_found[0]
    list(condense_stream(batches(9, 4), job, "teacher", GPUS, True))  # type: ignore[arg-type]
    list(survey_stream(manifest(9), job, "teacher", GPUS))  # type: ignore[arg-type]
    condensing, surveying = datasets
    assert (condensing.worker, surveying.worker) == (CondenseWorker, SurveyWorker)
    given = {"job": job, "teacher": "teacher"}
    assert condensing.working["fn_constructor_kwargs"] == given | {"isolated": True}
    assert surveying.working["fn_constructor_kwargs"] == given
    assert (condensing.working["batch_size"], surveying.working["batch_size"]) == (4, 1)
    assert (condensing.read_together, surveying.read_together) == (4, 1)
    for made in datasets:
        assert made.working["num_gpus"] == 0.5
        assert made.working["num_cpus"] == 0, "each GPU takes a CPU from the readers, and the job hangs without one"
        pool = made.working["compute"]
        assert (pool.min_size, pool.max_size, pool.initial_size) == (2, 4, 3)
        assert pool.max_tasks_in_flight_per_actor == 2, "a GPU that waits for its next images is idle"
    assert condensing.reader.isolated and not surveying.reader.isolated


def test_separate_readers_are_restarted_without_a_limit(
    datasets: list[FakeDataset], job_and_found: tuple[Job, ImageListing]
) -> None:
    """Catches a job that ends because one image crashed the decoder; and workers on CPUs that wait for readers to leave
    them one: Ray joins reading to the workers for equal resources alone, and restarts those anyhow."""
    for pool in (CPUS, GPUS, PoolPlan({"num_cpus": 0.5}, 1, 1, 1, "CPUs")):
        list(condense_stream(batches(2, 1), job_and_found[0], None, pool, False))  # type: ignore[arg-type]
    assert [made.reading for made in datasets] == [
        {"num_cpus": 1.0}, {"num_cpus": 1, "max_retries": -1}, {"num_cpus": 0.5}
    ]  # fmt: skip


def test_a_pool_without_a_limit_gives_work_to_machines_that_join_later(
    datasets: list[FakeDataset], job_and_found: tuple[Job, ImageListing]
) -> None:
    """Catches a cluster that grows while the pool stays as large as it was at the start."""
    grows = PoolPlan({"num_cpus": 1.0}, 1, 3, 2, "CPUs", may_grow=True)
    list(condense_stream(batches(2, 1), job_and_found[0], None, grows, False))  # type: ignore[arg-type]
    assert datasets[0].working["compute"].max_size == float("inf")


def test_rows_arrive_one_by_one_as_blocks_are_finished(
    datasets: list[FakeDataset], job_and_found: tuple[Job, ImageListing]
) -> None:
    """Catches a progress bar that stands still until everything is done."""
    rows = condense_stream(batches(2, 1), job_and_found[0], None, CPUS, False)  # type: ignore[arg-type]
    assert next(rows)["n"] == 0
    assert datasets[0].taken == 1
    assert [row["n"] for row in rows] == [1, 2]


@pytest.mark.parametrize("error", [BadRequest("no such folder there"), IdcError("the disk is full")])
def test_an_error_of_a_worker_is_raised_as_what_it_was(
    datasets: list[FakeDataset], job_and_found: tuple[Job, ImageListing], error: IdcError
) -> None:
    """Catches an exit code of 1 for what the user has to change, and a row that is mistaken for an image's."""
    rows = condense_stream(batches(2, 1), job_and_found[0], None, CPUS, False)  # type: ignore[arg-type]
    next(rows)
    datasets[0].answers[1] = [as_row(error)]
    next(rows)
    with pytest.raises(type(error), match=str(error)) as caught:
        next(rows)
    assert caught.value.exit_code == error.exit_code


def test_closing_the_stream_ends_the_pipeline_at_once(
    datasets: list[FakeDataset], job_and_found: tuple[Job, ImageListing]
) -> None:
    """Catches one that lives on until it is collected as garbage, when Ray is gone already."""
    rows = condense_stream(batches(2, 1), job_and_found[0], None, CPUS, False)  # type: ignore[arg-type]
    next(rows)
    rows.close()
    assert datasets[0].ended
