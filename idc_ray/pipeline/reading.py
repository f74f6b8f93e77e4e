"""The CPU stage: reads the image of a manifest row."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from idc_ray.columns import schema_of
from idc_ray.condensation.tasks import needs_hr
from idc_ray.degradation import Degrade, reading
from idc_ray.errors import IdcError, RejectedImage
from idc_ray.images import ImageRef, load_instance
from idc_ray.pipeline.crashes import READING, Death, Ledger
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.outage import outage

log = logging.getLogger(__name__)

#: Code of a row that is no image's fault: with it the job has to end.
ENDS_THE_JOB = "ends_the_job"

#: Code of a row that only fills a batch.
NO_IMAGE = "no_image"

LargeBytes = Annotated[bytes, pa.large_binary()]  # 64-bit offsets: blocks of large images exceed 2 GiB


@dataclass(frozen=True)
class ReadRow:
    """What a reader hands to a worker: an image, or the reason why it could not be read.

    Attributes:
        image_id, source, mtime_ns: of the manifest.
        lr: uint8 (height, width, 3); ``hr`` likewise, empty if the method needs none.
        source_bytes, source_sha256, color_profile: see :class:`idc_ray.images.Instance`.
        code: kind of error; empty for an image that was read.
        reason, traceback: description of the error.
        attempts: how often the image was tried.
        degradation: see :class:`idc_ray.store.records.ImageRecord`.
        read_seconds: time of reading.
    """

    image_id: str = ""
    source: str = ""
    mtime_ns: int = 0
    lr: LargeBytes = b""
    height: int = 0
    width: int = 0
    hr: LargeBytes = b""
    source_bytes: int = 0
    source_sha256: str = ""
    code: str = ""
    reason: str = ""
    traceback: str = ""
    attempts: int = 1
    color_profile: str | None = None
    degradation: str | None = None
    read_seconds: float = 0.0


READ_SCHEMA = schema_of(ReadRow)


def read_image(job: Job, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read, check and downscale one image: a :class:`ReadRow`, as a dictionary, for a row of the manifest.

    A bad image gives a row with a ``code``, never an exception, which would abort the whole job. If this
    machine cannot access the input, the code is ``ENDS_THE_JOB``.
    """
    begin = time.perf_counter()
    return _row(row, _read(job, ImageRef.from_row(row)), time.perf_counter() - begin)


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
            return asdict(ReadRow(code=NO_IMAGE))
        if row["image_id"] == death.image and death.attempts >= self.job.config.store.attempts:
            return _row(row, _killed(death.attempts))
        return read_image(self.job, row)


def _row(row: Mapping[str, Any], read: ReadRow, seconds: float = 0.0) -> dict[str, Any]:
    named = {"image_id": row["image_id"], "source": row["source"], "mtime_ns": max(0, row["mtime_ns"])}
    return asdict(replace(read, **named, read_seconds=seconds))


def _read(job: Job, ref: ImageRef) -> ReadRow:
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
            return ReadRow(code=ENDS_THE_JOB, reason=reason)
        return ReadRow(code=error.code, reason=error.reason)
    except MemoryError as error:
        reason = f"not enough memory to read the image: {error}"
        return ReadRow(code="out_of_memory", reason=reason, traceback=traceback.format_exc())
    except Exception as error:
        reason = f"{type(error).__name__} while reading the image: {error}"
        return ReadRow(code="unexpected", reason=reason, traceback=traceback.format_exc())
    return ReadRow(
        lr=instance.lr.tobytes(),
        height=instance.lr.shape[0],
        width=instance.lr.shape[1],
        hr=b"" if instance.hr is None else instance.hr.tobytes(),
        source_bytes=instance.source_bytes,
        source_sha256=instance.source_sha256,
        color_profile=instance.color_profile,
        degradation=Degrade.of(config).recorded(ref.image_id),
    )


def _killed(attempts: int) -> ReadRow:
    reason = (
        f"the process that read this image died {attempts} times (out of memory, or a crash of the decoder); "
        "give the machine more memory and use --retry-quarantined, or remove the image"
    )
    return ReadRow(code="killed_reader", reason=reason, attempts=attempts)


def pixels(row: dict[str, Any], scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """LR image (H, W, 3) of a row, and HR image (scale H, scale W, 3) if it has one."""
    height, width = row["height"], row["width"]
    lr = np.frombuffer(row["lr"], np.uint8).reshape(height, width, 3)
    if not row["hr"]:
        return lr, None
    return lr, np.frombuffer(row["hr"], np.uint8).reshape(scale * height, scale * width, 3)
