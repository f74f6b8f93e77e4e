"""The CPU stage: reads the image of a manifest row."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from idc_ray.condensation.tasks import needs_hr
from idc_ray.degradation import Degrade, reading
from idc_ray.errors import IdcError, RejectedImage
from idc_ray.images import ImageRef, Instance, load_instance
from idc_ray.pipeline.attempts import READING, Death, Ledger
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.outage import outage

__all__ = ["ENDS_THE_JOB", "NO_IMAGE", "READ_SCHEMA", "ReadImages", "pixels", "read_image"]

log = logging.getLogger(__name__)

#: Code of a row that is no image's fault: with it the job has to end.
ENDS_THE_JOB = "ends_the_job"

#: Code of a row that only fills a batch.
NO_IMAGE = "no_image"

#: Columns of an image that was read, or of the reason why not. 64-bit offsets: blocks of large images exceed 2 GiB.
READ_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()), ("source", pa.string()), ("mtime_ns", pa.int64()), ("lr", pa.large_binary()),
        ("height", pa.int64()), ("width", pa.int64()), ("hr", pa.large_binary()), ("source_bytes", pa.int64()),
        ("source_sha256", pa.string()), ("code", pa.string()), ("reason", pa.string()), ("traceback", pa.string()),
        ("attempts", pa.int64()), ("color_profile", pa.string()), ("degradation", pa.string()),
        ("read_seconds", pa.float64()),
    ]
)  # fmt: skip


def read_image(job: Job, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read, check and downscale one image: the values of `READ_SCHEMA` for a row of the manifest.

    A bad image gives a row with a ``code``, never an exception, which would abort the whole job. If this
    machine cannot access the input, the code is ``ENDS_THE_JOB``.
    """
    begin = time.perf_counter()
    return _named(row, _read(job, ImageRef.from_row(dict(row))), time.perf_counter() - begin)


class ReadImages:
    """Reads batches of the manifest, see :func:`read_image`; a function for Ray Data, which retries without limit.

    An image that kills its reader ``store.attempts`` times has the code ``killed_reader``.

    Args:
        job: the job.
        isolated: whether the images will be condensed one by one, as earlier attempts died with them in flight.
        node: returns the id of the node of a call.
        node_lives: whether a node is still part of the cluster.
    """

    def __init__(
        self,
        job: Job,
        isolated: bool = False,
        node: Callable[[], str] = str,
        node_lives: Callable[[str], bool] = bool,
    ) -> None:
        self.job, self.isolated, self.node, self.node_lives = job, isolated, node, node_lives

    def __call__(self, batch: pa.Table) -> pa.Table:
        ledger = Ledger(self.job.store, self.job.launch, self.node(), self.node_lives, READING)
        rows = batch.to_pylist()
        images = [row["image_id"] for row in rows if row["image_id"] is not None]
        # Such as a full disk: the worker, which has to write there, says it best.
        failing = contextlib.suppress(IdcError, OSError)
        death: Death | None = None
        out: list[dict[str, Any]] = []
        with failing:
            death = ledger.begin(images, self.isolated, rows[0]["source"] or "") if images else None
        if death is not None:
            log.warning("a process died while reading %d images; reading them one by one", len(images))
        try:
            for row in rows:
                if row["image_id"] is not None and death is not None:
                    with failing:
                        ledger.record([row["image_id"]], True, row["source"])
                out.append(self._row(row, death or Death()))
        finally:
            with failing:
                ledger.end()
        return pa.Table.from_pylist(out, schema=READ_SCHEMA)

    def _row(self, row: dict[str, Any], death: Death) -> dict[str, Any]:
        if row["image_id"] is None:
            return _named({"image_id": "", "source": "", "mtime_ns": 0}, _row(code=NO_IMAGE))
        if row["image_id"] == death.image and death.attempts >= self.job.config.store.attempts:
            return _named(row, _quarantined(death.attempts))
        return read_image(self.job, row)


def _named(row: Mapping[str, Any], out: dict[str, Any], seconds: float = 0.0) -> dict[str, Any]:
    names = {"image_id": row["image_id"], "source": row["source"], "mtime_ns": max(0, row["mtime_ns"])}
    return {**names, **out, "read_seconds": seconds}


def _read(job: Job, ref: ImageRef) -> dict[str, Any]:
    config = job.config
    try:
        instance = load_instance(
            ref,
            job.filesystem,
            **reading(config),
            keep_hr=needs_hr(config),
            lr_filesystem=job.lr_filesystem,
        )
    except RejectedImage as error:
        reason = outage(error, ref, job.filesystem, job.input_uri, job.root, job.samples)
        if reason is not None:
            return _row(code=ENDS_THE_JOB, reason=reason)
        return _row(code=error.code, reason=error.reason)
    except MemoryError as error:
        return _row(
            code="out_of_memory",
            reason=f"not enough memory to read the image: {error}",
            trace=traceback.format_exc(),
        )
    except Exception as error:
        return _row(
            code="unexpected",
            reason=f"{type(error).__name__} while reading the image: {error}",
            trace=traceback.format_exc(),
        )
    return _row(instance) | {"degradation": Degrade.of(config).recorded(ref.image_id)}


def _quarantined(attempts: int) -> dict[str, Any]:
    reason = (
        f"the process that read this image died {attempts} times (out of memory, or a crash of the decoder); "
        "give the machine more memory and use --retry-quarantined, or remove the image"
    )
    return _row(code="killed_reader", reason=reason, attempts=attempts)


def _row(
    image: Instance | None = None,
    code: str = "",
    reason: str = "",
    trace: str = "",
    attempts: int = 1,
) -> dict[str, Any]:
    """A row with all columns, as blocks of Ray Data have one schema."""
    return {
        "lr": b"" if image is None else image.lr.tobytes(),
        "height": 0 if image is None else image.lr.shape[0],
        "width": 0 if image is None else image.lr.shape[1],
        "hr": b"" if image is None or image.hr is None else image.hr.tobytes(),
        "source_bytes": 0 if image is None else image.source_bytes,
        "source_sha256": "" if image is None else image.source_sha256,
        "color_profile": None if image is None else image.color_profile,
        "degradation": None,
        "code": code,
        "reason": reason,
        "traceback": trace,
        "attempts": attempts,
    }


def pixels(row: dict[str, Any], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """LR image (H, W, 3) of a row, and HR image (scale H, scale W, 3) if it has one."""
    height, width = row["height"], row["width"]
    lr = np.frombuffer(row["lr"], np.uint8).reshape(height, width, 3)
    if not row["hr"]:
        return lr, None
    return lr, np.frombuffer(row["hr"], np.uint8).reshape(scale * height, scale * width, 3)
