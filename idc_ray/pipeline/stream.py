"""The Ray Data pipeline: manifest, readers on CPUs, a pool of workers, status rows."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Generator
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from idc_ray.pipeline.batches import Batches, single_images
from idc_ray.pipeline.cluster import PoolPlan, node_id, node_lives
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.reading import ReadImages
from idc_ray.pipeline.stopping import raise_from
from idc_ray.pipeline.worker import CondenseWorker, SurveyWorker

#: Most blocks that the manifest is cut into: each takes the driver 1 ms of CPU time before the first image.
MAX_BLOCKS = 4000


def condense_stream(
    batches: Batches, job: Job, teacher: ray.ObjectRef[bytes], pool: PoolPlan, isolated: bool
) -> Generator[dict[str, Any]]:
    """Condense images; yields status rows as batches finish. Close the generator to stop early.

    Args:
        batches: images; those of a batch are condensed together.
        job: the job.
        teacher: content of the checkpoint.
        pool: the workers.
        isolated: condense images one by one, as earlier attempts died with them in flight.

    Raises:
        IdcError: a fatal error of a worker.
    """
    images = _read(batches, job, pool, isolated)
    statuses = images.map_batches(
        CondenseWorker,
        fn_constructor_kwargs={"job": job, "teacher": teacher, "isolated": isolated},
        batch_size=batches.size,
        **_working(pool),
    )
    yield from _rows(statuses)


def survey_stream(
    manifest: pa.Table, job: Job, teacher: ray.ObjectRef[bytes], pool: PoolPlan
) -> Generator[dict[str, Any]]:
    """Measure images of a manifest: rows of image_id, difficulty (None if unreadable), height, width."""
    statuses = _read(single_images(manifest), job, pool).map_batches(
        SurveyWorker,
        fn_constructor_kwargs={"job": job, "teacher": teacher},
        batch_size=1,
        **_working(pool),
    )
    yield from _rows(statuses)


def _read(batches: Batches, job: Job, pool: PoolPlan, isolated: bool = False) -> Dataset:
    """Read images in blocks of whole batches, so that no worker waits for another block."""
    rows = batches.size * max(1, math.ceil(batches.count / MAX_BLOCKS))
    blocks = [batches.rows.slice(begin, rows) for begin in range(0, batches.rows.num_rows, rows)]
    # Workers on CPUs read their images themselves: Ray joins two steps of equal resources, and restarts the workers
    # without end. Readers beside GPUs it would give up after three deaths, and the job with them: ReadImages gives up
    # the image instead.
    own = pool.options if "num_cpus" in pool.options else {"num_cpus": 1, "max_retries": -1}
    # from_blocks, since from_arrow runs a task for each block first, to learn what is known here: a process for each
    # CPU is started for nothing, and a cluster that grows on demand is waited for.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_retries, which has no other name yet
        read = ReadImages(job, isolated, node_id, node_lives)
        return ray.data.from_blocks(blocks).map_batches(read, batch_size=batches.size, batch_format="pyarrow", **own)


def _working(pool: PoolPlan) -> dict[str, Any]:
    """Options of the workers. Ray Data would also give each GPU worker a CPU, perhaps the last one of the readers.

    On CPUs batches are not queued at a worker, as another may be free earlier; a GPU would idle meanwhile.
    """
    most = None if pool.may_grow else pool.max_size
    strategy = ActorPoolStrategy(
        min_size=pool.min_size,
        max_size=most,
        initial_size=pool.initial_size,
        max_tasks_in_flight_per_actor=1 if pool.device == "CPUs" else 2,
    )
    return {"batch_format": "pyarrow", "compute": strategy, "num_cpus": 0, **pool.options}


def _rows(statuses: Dataset) -> Generator[dict[str, Any]]:
    batches = iter(statuses.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with contextlib.closing(batches):  # left to the garbage collector, Ray Data would start a new Ray to end in
        for batch in batches:
            for text in batch["status"].to_pylist():
                row = json.loads(text)
                raise_from(row)
                yield row
