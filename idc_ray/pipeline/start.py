"""Makes the description of a job and its run record. Apart from the description, as it imports torch."""

from __future__ import annotations

import importlib.metadata
import platform
import uuid
from datetime import UTC, datetime
from typing import Any

import idc_ray
from idc_ray.config import CondenseConfig
from idc_ray.images import ImageListing
from idc_ray.models import teacher_sha256
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.outage import input_root, input_samples
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import shard_count_for
from idc_ray.store.run_record import RunRecord


def new_job(config: CondenseConfig, store: StorageFolder, listing: ImageListing, teacher: bytes, launch: str) -> Job:
    """Describe the job of condensing a listing with a teacher's checkpoint."""
    return Job(
        config=config,
        store=store,
        digest=config.digest(teacher_sha256(teacher)),
        launch=launch,
        filesystem=listing.filesystem,
        lr_filesystem=listing.lr_filesystem,
        root=input_root(listing),
        input_uri=listing.uri,
        samples=input_samples(listing),
    )


def new_launch() -> str:
    """Id of a new attempt; it starts with the time, which ``idc-ray status`` reads."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def run_record(job: Job, teacher: bytes, expected_bytes: float, **more: Any) -> RunRecord:
    """Run record of a new run.

    Args:
        job: the job.
        teacher: content of the checkpoint.
        expected_bytes: expected size of all tiles, for the number of shards.
        more: further fields of the record.
    """
    return RunRecord(
        config=job.config.model_dump(mode="json"),
        digest=job.digest,
        teacher_sha256=teacher_sha256(teacher),
        versions=_versions(),
        shard_count=shard_count_for(int(expected_bytes), job.config.store.shard_bytes),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        device="",
        **{"input_uri": job.input_uri, **more},
    )


def _versions() -> dict[str, str]:
    """Versions of the main packages, for records."""
    packages = ("torch", "ray", "pyarrow", "numpy", "pillow", "mlflow")
    own = {"idc_ray": idc_ray.__version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(name) for name in packages}
