"""The GPU (or CPU) stage: condenses batches of images and commits each one itself.

An exception out of a worker would abort the job and lose what was finished but not written. So every
failure is caught here, for one image at a time, and becomes a quarantine entry and a status row.
"""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray
import torch

from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.out_of_memory import is_out_of_memory
from idc_ray.condensation.retry import condense_each
from idc_ray.condensation.tasks import Condensed, ImageTask, stored_tiles
from idc_ray.errors import BadRequest, IdcError
from idc_ray.pipeline.cluster import node_id, node_lives
from idc_ray.pipeline.crashes import Ledger
from idc_ray.pipeline.device import device_kind, device_works, set_up_torch
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.metrics import WorkerMetrics
from idc_ray.pipeline.reading import ENDS_THE_JOB, NO_IMAGE, pixels
from idc_ray.pipeline.stopping import as_row
from idc_ray.redact import printable
from idc_ray.store.layout import part_contents
from idc_ray.store.parts import Finished, commit_images, list_parts, part_records
from idc_ray.store.quarantine import QuarantineEntry, quarantine_image
from idc_ray.store.records import ImageRecord
from idc_ray.store.run_record import RunRecord, read_run
from idc_ray.store.schema import TileRow

log = logging.getLogger(__name__)

#: Images of a batch that are committed together while a GPU condenses the next; on CPUs those of a batch are.
COMMITTED_TOGETHER = 8

Row = dict[str, Any]


def _statuses(rows: Sequence[Row]) -> pa.Table:
    """One column of JSON: blocks have the same schema whatever a row lacks."""
    return pa.table({"status": [json.dumps(row) for row in rows]}, schema=pa.schema([("status", pa.string())]))


class _Worker(ABC):
    """Base class of the workers: a teacher on a device, and the reporting of fatal errors to the driver.

    Fatal errors are returned as status rows, as Ray loses the type of exceptions.
    """

    def __init__(self, job: Job, teacher: ray.ObjectRef[bytes]) -> None:
        self.job, self.device = job, torch.device("cpu")
        self.useless: IdcError | None = None
        try:
            self.device = set_up_torch(job.config.actors, has_gpu=bool(ray.get_gpu_ids()))
            self.shard_count = _visible_run(job).shard_count
            self.condenser = load_condenser(job.config, ray.get(teacher), self.device, job.mean_difficulty)
        except IdcError as error:  # raised here, it would be tried again and again
            self.useless = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [row for row in batch.to_pylist() if row["code"] != NO_IMAGE]
        try:
            if self.useless is not None:
                raise self.useless
            for row in rows:
                if row["code"] == ENDS_THE_JOB:
                    raise BadRequest(row["reason"])
            return _statuses(self.work(rows))
        except IdcError as error:
            return _statuses([as_row(error)])
        except OSError as error:  # images are read elsewhere and their errors caught: this is about the output
            fix = "fix this and run the same command again: finished images are kept"
            return _statuses([as_row(IdcError(f"the output {self.job.store.uri} cannot be used ({error}); {fix}"))])

    def _die_with_device(self, error: Exception) -> None:
        """End this process if its GPU is out of order: until then every image would fail there and be blamed for it.

        What this worker states stays as it is, so that this counts like any other death over an image.
        """
        if not device_works(self.device):
            log.error("the GPU of this worker failed; restarting the worker: %s", error)
            os._exit(1)

    @abstractmethod
    def work(self, rows: list[Row]) -> list[Row]:
        """Status rows of images that were read."""


class SurveyWorker(_Worker):
    """Measures the difficulty of images, for ``allocation: difficulty``."""

    def work(self, rows: list[Row]) -> list[Row]:
        out = []
        for row in rows:
            status = {"image_id": row["image_id"], "difficulty": None, "height": row["height"], "width": row["width"]}
            if not row["code"]:
                status["difficulty"] = self._difficulty(row)
            out.append(status)
        return out

    def _difficulty(self, row: Row) -> float | None:
        """None for an image that fails: it is quarantined later, when it is condensed; here it would end the job."""
        try:
            return self.condenser.difficulty(pixels(row, self.job.config.scale)[0])
        except Exception as error:
            self._die_with_device(error)
            log.warning(
                "%s is not used to measure the mean difficulty: %s: %s",
                printable(row["source"]),
                type(error).__name__,
                error,
            )
            return None


class CondenseWorker(_Worker):
    """A batch of images in, their status rows out; tiles go to the store.

    Args:
        job: the job.
        teacher: the checkpoint's bytes, in the object store.
        isolated: run every image by itself from the start, because earlier launches died over it.
    """

    def __init__(self, job: Job, teacher: ray.ObjectRef[bytes], isolated: bool) -> None:
        super().__init__(job, teacher)
        self.isolated = isolated
        self.together = None if self.device.type == "cpu" else COMMITTED_TOGETHER
        self.kind = device_kind(self.device)
        self.ledger = Ledger(job.store, job.launch, node_id(), node_lives)
        self.metrics = WorkerMetrics(job.digest, self.device)

    def work(self, rows: list[Row]) -> list[Row]:
        if not rows:
            return []
        try:
            statuses = self._work(rows)
        finally:
            self.ledger.end()  # whatever ends this without killing the process is no image's fault
        self.metrics.update(statuses)
        return statuses

    def _work(self, rows: list[Row]) -> list[Row]:
        images = [row["image_id"] for row in rows]
        death = self.ledger.begin(images, self.isolated, rows[0]["source"])
        if death is not None:
            log.warning("a worker died with %d images in flight; rerunning them one by one", len(images))
        committed = self._committed(images)
        statuses: list[Row] = []
        ready: list[Row] = []
        for row in rows:
            if row["image_id"] in committed:  # Ray hands a batch out again when it lost the answer, not the work
                statuses.append(_status(row, "skipped"))
            elif row["code"]:
                statuses.append(self._set_aside(row, row["code"], row["reason"], row["traceback"], row["attempts"]))
            elif death and row["image_id"] == death.image and death.attempts >= self.job.config.store.attempts:
                statuses.append(self._quarantine(row, death.attempts))
            else:
                ready.append(row)
        isolated = self.isolated or death is not None
        size = 1 if isolated else self.together or len(ready)
        running: list[Future[list[Row]]] = []
        with ThreadPoolExecutor(1, "commit") as commits:
            for begin in range(0, len(ready), size or 1):
                running += self._run(ready[begin : begin + size], isolated, commits)
        return statuses + [status for commit in running for status in commit.result()]

    def _run(self, rows: list[Row], isolated: bool, commits: ThreadPoolExecutor) -> list[Future[list[Row]]]:
        """Condense ``rows`` together; what fails together is tried again one by one.

        Returns:
            Their commits, in order. A GPU goes on meanwhile, except with images that are tried alone.
        """
        if isolated:
            self.ledger.record([row["image_id"] for row in rows], True, rows[0]["source"])
        tasks = [self._task(row) for row in rows]
        running: list[Future[list[Row]]] = []
        begin = 0
        for results in condense_each(self.condenser, tasks):
            running.append(commits.submit(self._finish, rows[begin : begin + len(results)], results))
            begin += len(results)
            if self.together is None or isolated or len(results) < len(rows):
                running[-1].result()
        return running

    def _task(self, row: Row) -> ImageTask:
        tiles = self.job.tiles_of(row["image_id"], row["height"], row["width"])
        return ImageTask(row["image_id"], *pixels(row, self.job.config.scale), tiles=tiles)

    def _finish(self, rows: list[Row], results: Sequence[Condensed | Exception]) -> list[Row]:
        """Commit what was condensed together; the status of each image."""
        begin = time.perf_counter()
        statuses: list[Row] = []
        finished: list[Finished] = []
        for row, result in zip(rows, results, strict=True):
            try:
                if isinstance(result, Exception):
                    raise result
                seconds = {"read": row["read_seconds"], **result.seconds}
                record = _record(row, result, seconds, self.kind)
                finished.append((record, _tile_rows(self.job, row, result)))
                losses = {"loss_start": result.loss_start, "loss_end": result.loss_end}
                statuses.append(_status(row, "done", **losses, seconds=seconds))
            except Exception as error:  # also of a loss that is not a number
                self._die_with_device(error)
                code, reason = explain(error)
                statuses.append(self._set_aside(row, code, reason, "".join(traceback.format_exception(error))))
        try:
            commit_images(self.job.store, self.job.digest, self.shard_count, finished)
        except (OSError, pa.ArrowException) as error:
            raise IdcError(
                f"the tiles of {len(finished)} images cannot be written to {self.job.store.uri} ({error}); "
                "fix this and run the same command again: finished images are kept"
            ) from error
        for status in statuses:
            if status["outcome"] == "done":
                status["seconds"]["commit"] = (time.perf_counter() - begin) / len(finished)
        return statuses

    def _committed(self, images: Sequence[str]) -> set[str]:
        """Which images of a batch are finished already."""
        store = self.job.store
        names = list_parts(store, self.job.digest, {image_id[:2] for image_id in images})
        own = [name for name in names if (contents := part_contents(name)) and contents[0] in images]
        return {image_id for records in part_records(store, own).values() for image_id in records}

    def _quarantine(self, row: Row, attempts: int) -> Row:
        reason = (
            f"the worker died {attempts} times while condensing only this image (out of memory, or a crash of "
            "native code); give the workers more memory and use --retry-quarantined, or remove the image"
        )
        return self._set_aside(row, "killed_worker", reason, attempts=attempts)

    def _set_aside(self, row: Row, code: str, reason: str, trace: str = "", attempts: int = 1) -> Row:
        entry = QuarantineEntry(
            image_id=row["image_id"],
            source=row["source"],
            code=code,
            reason=reason,
            traceback=trace,
            attempts=attempts,
            launch=self.job.launch,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        quarantine_image(self.job.store, self.job.digest, entry)
        return _status(row, "quarantined", code=code, reason=reason, seconds={"read": row["read_seconds"]})


def _visible_run(job: Job) -> RunRecord:
    run = read_run(job.store)
    if run is None or run.digest != job.digest:
        raise BadRequest(
            f"a machine of the cluster cannot access the output {job.store.uri}; "
            "use storage that all machines share, such as s3://, gs:// or a network folder"
        )
    return run


def explain(error: Exception) -> tuple[str, str]:
    """Code and reason of an image that could not be condensed."""
    if is_out_of_memory(error):
        return "out_of_memory", (
            f"not enough memory for this image ({error}); use a machine with more memory, "
            "or lower --ratio or --teacher-batch-size"
        )
    return "condensation_failed", f"{type(error).__name__} while condensing the image: {error}"


def _record(row: Row, result: Condensed, seconds: dict[str, float], device: str) -> ImageRecord:
    return ImageRecord(
        image_id=row["image_id"],
        source=row["source"],
        source_bytes=row["source_bytes"],
        source_mtime_ns=row["mtime_ns"],
        source_sha256=row["source_sha256"],
        lr_height=row["height"],
        lr_width=row["width"],
        candidate_tiles=result.candidates,
        tiles=len(result.lr_tiles),
        kept_start=result.kept_start,
        loss_start=result.loss_start,
        loss_end=result.loss_end,
        bandwidth_loss_start=result.bandwidth_start,
        bandwidth_loss_end=result.bandwidth_end,
        seconds=seconds,
        device=device,
        color_profile=row["color_profile"],
        degradation=row["degradation"],
    )


def _tile_rows(job: Job, row: Row, result: Condensed) -> list[TileRow]:
    config = job.config
    rows = []
    for index, ((lr, hr), corner) in enumerate(zip(stored_tiles(config, result), result.corners, strict=True)):
        rows.append(
            TileRow(
                image_id=row["image_id"],
                source=row["source"],
                source_bytes=row["source_bytes"],
                source_sha256=row["source_sha256"],
                tile_index=index,
                top=corner[0] if corner else None,
                left=corner[1] if corner else None,
                lr=lr,
                hr=hr,
                scale=config.scale,
                method=config.method,
                labels="real" if config.real_hr else "teacher" if hr else None,
                sample_weight=1.0,  # groups have equal masses, so all tiles count alike
                loss_start=result.loss_start,
                loss_end=result.loss_end,
                kept_start=result.kept_start,
                config_digest=job.digest,
            )
        )
    return rows


def _status(row: Row, outcome: str, **fields: Any) -> Row:
    """What the driver shows of an image: all else is in its record or its quarantine entry."""
    status: Row = {
        "image_id": row["image_id"],
        "source": row["source"],
        "outcome": outcome,
        "code": "",
        "reason": "",
        "loss_start": None,
        "loss_end": None,
        "seconds": {},
    }
    return status | fields
