"""Description of a job for all its processes."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.fs as pafs

from idc_ray.condensation.budget import expected_tiles, tile_budget
from idc_ray.config import CondenseConfig
from idc_ray.images import grid_count
from idc_ray.store.filesystem import StorageFolder


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
