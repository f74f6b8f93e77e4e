"""Description of a job for all its processes, and its run record."""

from __future__ import annotations

import importlib.metadata
import platform
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow.fs as pafs

import idc_ray
from idc_ray.condensation.budget import expected_tiles, tile_budget
from idc_ray.config import CondenseConfig
from idc_ray.images import ImageListing, grid_count
from idc_ray.models import teacher_sha256
from idc_ray.pipeline.inputs import input_root, input_samples
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import shard_count_for
from idc_ray.store.run_record import RunRecord


@dataclass(frozen=True)
class Job:
    """Description of a job; small and picklable.

    Attributes:
        config: configuration of the run.
        store: the output.
        digest: digest of the run.
        launch: id of this attempt.
        filesystem: file system of the manifest's paths.
        lr_filesystem: file system of paired LR images, if any.
        root: a path that every node must see to read the input.
        input_uri: URI of the input, for messages.
        samples: paths of images from all over the input, to see whether it can be read.
        mean_difficulty: mean difficulty of the images, for ``allocation: difficulty``, for images without a budget.
        budgets: tiles of images by id, from the survey; None: each follows from the image alone.
    """

    config: CondenseConfig
    store: StorageFolder
    digest: str
    launch: str
    filesystem: pafs.FileSystem
    lr_filesystem: pafs.FileSystem | None
    root: str
    input_uri: str
    samples: tuple[str, ...] = ()
    mean_difficulty: float | None = None
    budgets: dict[str, int] | None = None

    def tiles_of(self, image_id: str, height: int, width: int) -> int | None:
        """Budget of an LR image of this size; None: it follows from its difficulty."""
        config = self.config
        if self.budgets is not None and image_id in self.budgets:
            return self.budgets[image_id]
        if config.allocation == "difficulty":
            return None
        expected = expected_tiles(config.ratio, height, width, config.tile_size)
        return tile_budget(expected, grid_count(height, width, config.tile_size), config.seed, image_id)


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
