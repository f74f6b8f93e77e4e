"""What every process of a job has to know."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.fs as pafs

from idc_ray.config import CondenseConfig
from idc_ray.store.filesystem import StorageFolder

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """Sent to all readers and workers; small and picklable.

    Attributes:
        config: the run's configuration.
        store: the output.
        digest: the run's digest.
        launch: id of this launch of the job.
        filesystem: where the manifest's paths are.
        lr_filesystem: where the paired LR images are, if any.
        root: a path that every node must see if it can read the input at all.
        input_uri: the input, for messages.
        samples: paths of some images all over the input; who can read none of them lost access to it.
        mean_difficulty: what ``allocation: difficulty`` divides by.
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
