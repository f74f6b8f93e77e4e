"""What every process of a job has to know."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.fs as pafs

from idc_ray.condensation.budget import expected_tiles, tile_budget
from idc_ray.config import CondenseConfig
from idc_ray.images import grid_count
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
        mean_difficulty: what ``allocation: difficulty`` divides by, for images without a budget.
        budgets: tiles of images by id, from the survey; None: every image's follow from it alone.
    """

    config: CondenseConfig
    store: StorageFolder
    digest: str
    launch: str
    filesystem: pafs.FileSystem
    lr_filesystem: pafs.FileSystem | None
    root: str
    input_uri: str
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
