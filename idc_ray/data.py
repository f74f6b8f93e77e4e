"""Condensation as a stage of a Ray Data pipeline: datasets of images in, datasets of tiles out.

For data that other stages read, filter and write. For image files, the job :func:`idc_ray.condense` does more: it can
be continued after a kill, and quarantines an image that kills its worker, which a stage would retry forever.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, Dataset

from idc_ray.api.arrays import as_rgb
from idc_ray.api.condenser import OF_THE_JOB, image_task
from idc_ray.api.settings import Path, configure, refuse
from idc_ray.api.state import preserved
from idc_ray.condensation.load import load_condenser, load_networks
from idc_ray.condensation.retry import condense_each
from idc_ray.condensation.tasks import Condensed, ImageTask, stored_tiles
from idc_ray.config import CondenseConfig
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.evaluation.network import read_checkpoint
from idc_ray.images import decode_image, decode_png
from idc_ray.pipeline.cluster import PoolPlan, plan_pool
from idc_ray.pipeline.condense import IMAGES_PER_STEP
from idc_ray.pipeline.device import device_works, set_up_torch
from idc_ray.pipeline.worker import explain
from idc_ray.store.schema import ROW_SCHEMA

__all__ = ["TILES", "condense", "decode"]

_OF_SHARDS = (
    "image_id", "source", "tile_index", "top", "left", "lr", "hr", "scale", "loss_start", "loss_end", "kept_start",
)  # fmt: skip

TILES = pa.schema([*map(ROW_SCHEMA.field, _OF_SHARDS), pa.field("error", pa.string())])
"""Columns of :func:`condense`, with the names and meanings of the job's shards. ``lr`` and ``hr`` are structs with a
PNG in ``bytes``. ``error`` is null in rows of tiles. The row of an image that could not be used has its source, its
image id if known, and in ``error`` the code and the reason, such as ``truncated: the PNG ends too early``."""

#: Default columns of the images: those of ``ray.data.read_images`` and ``read_binary_files``.
COLUMNS = ("image", "bytes")


def condense(
    dataset: Dataset, *, column: str | None = None, teacher: Path = "bundled", scale: int = 2, **settings: object
) -> Dataset:
    """Condense the images of a dataset. Lazy and streaming: nothing runs until the result is consumed.

    Each image gives the rows of its tiles, or one row with ``error`` set if it cannot be used; drop the latter with
    ``.filter(expr=col("error").is_null())``. Each image is condensed to ``ratio`` of its pixels, at least one tile;
    tiles are the same bytes as those of the job :func:`idc_ray.condense` with the same settings, image id and number of
    tiles, in any batch and on any worker with the same kind of device. The order of rows is not fixed.

    Workers use one GPU each if the cluster has any, else one CPU each; ``actors`` changes this. Their number is
    autoscaled.

    Args:
        dataset: rows with an image, and optionally ``image_id`` (text, seeds the image's random numbers; default: the
            SHA-256 of the pixels) and ``source`` or ``path`` (text, kept as ``source``). Other columns are dropped.
        column: column of the images: uint8 (H, W, 3), RGB; or encoded, as bytes or as a struct with ``bytes``; None:
            ``image``, else ``bytes``.
        teacher: checkpoint of the network that labels the tiles; ``bundled``: the small EDSR of this package.
        scale: super-resolution factor, 2, 3 or 4; 1: restoration.
        settings: settings of the method and the workers with the names of ``idc-ray condense``, nested as dictionaries:
            ``ratio=0.1``, ``actors={"max_size": 8}``, ``source={"max_pixels": 10**7}``.

    Returns:
        A dataset with the columns :data:`TILES`.

    Raises:
        BadRequest: an unknown setting (the message suggests a similar one), one that does not apply here, a wrong type
            or range, or a teacher that cannot be used. A missing column raises Ray's ``UserCodeException`` when the
            dataset is consumed.

    Example:
        >>> import idc_ray, ray
        >>> from ray.data.expressions import col
        >>> images = ray.data.read_images("photos/", mode="RGB", include_paths=True)
        >>> tiles = idc_ray.data.condense(images, scale=2, ratio=0.1)
        >>> tiles.filter(expr=col("error").is_null()).write_parquet("tiles/")
        >>> ray.data.read_parquet("tiles/").count()
        4
    """
    refuse(CondenseConfig, settings, OF_THE_JOB, "it is a setting of the whole job, idc_ray.condense")
    config = configure(CondenseConfig, {**settings, "scale": scale})
    checkpoint, _ = read_checkpoint(os.fspath(teacher), config.scale, "teacher")
    with preserved():
        load_networks(config, checkpoint, torch.device("cpu"))  # raises errors here, not in workers minutes later
    actors = config.actors
    pool = plan_pool(actors, ray.cluster_resources(), actors.min_size)
    return dataset.map_batches(
        _Condense,
        fn_constructor_kwargs={"config": config, "checkpoint": ray.put(checkpoint), "column": column},
        batch_size=actors.images_per_step or IMAGES_PER_STEP[pool.device],
        batch_format="numpy",
        compute=ActorPoolStrategy(min_size=actors.min_size, max_size=actors.max_size, initial_size=actors.initial_size),
        **_resources(pool),
    )


def decode(row: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the tiles in a row of :func:`condense` or of the job's shards.

    Returns:
        The row with ``lr`` as uint8 (p, p, 3) and ``hr`` as uint8 (scale p, scale p, 3); what is not stored stays None.

    Raises:
        BadRequest: the row has an error instead of a tile.

    Example:
        >>> import idc_ray, ray
        >>> tiles = ray.data.read_parquet("out/shards/").map(idc_ray.data.decode)
        >>> pairs = tiles.select_columns(["lr", "hr"])
        >>> batch = next(iter(pairs.iter_torch_batches(batch_size=2)))
        >>> batch["lr"].shape, batch["hr"].shape
        (torch.Size([2, 48, 48, 3]), torch.Size([2, 96, 96, 3]))
    """
    if row.get("error") is not None:
        raise BadRequest(
            f"the row of {row['source'] or 'an image'} has no tile ({row['error']}); filter out rows with errors first"
        )
    return {**row, **{name: decode_png(row[name]["bytes"]) for name in ("lr", "hr") if row[name] is not None}}


def _resources(pool: PoolPlan) -> dict[str, float]:
    """Resources of one worker; no CPU if the pool would take all, as earlier stages would then wait forever."""
    if "num_gpus" in pool.options:
        return {"num_cpus": 0, **pool.options}
    taken = pool.options["num_cpus"] * pool.min_size
    return pool.options if taken + 1 <= ray.cluster_resources().get("CPU", 0.0) else {"num_cpus": 0}


class _Condense:
    """Worker of :func:`condense`.

    Args:
        config: the settings.
        checkpoint: content of the teacher's file, in the object store.
        column: column of the images.
    """

    def __init__(self, config: CondenseConfig, checkpoint: ray.ObjectRef[bytes], column: str | None) -> None:
        self.config, self.column = config, column
        self.device = set_up_torch(config.actors, has_gpu=bool(ray.get_gpu_ids()))
        self.condenser = load_condenser(config, ray.get(checkpoint), self.device)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> pa.Table:
        images = batch[self._column(batch)]
        nothing = [None] * len(images)
        sources = map(_text, next((batch[name] for name in ("source", "path") if name in batch), nothing))
        ids = list(map(_text, batch.get("image_id", nothing)))
        work = [self._task(image, each) for image, each in zip(images, ids, strict=True)]
        tasks = [task for task in work if isinstance(task, ImageTask)]
        results = chain.from_iterable(condense_each(self.condenser, tasks))
        rows: list[dict[str, Any]] = []
        for task, image_id, source in zip(work, ids, sources, strict=True):
            if isinstance(task, ImageTask):
                rows += self._rows(task.image_id, source, next(results))
            else:
                rows.append(_unusable(image_id, source, task))
        return pa.Table.from_pylist(rows, schema=TILES)

    def _column(self, batch: Mapping[str, object]) -> str:
        wanted = COLUMNS if self.column is None else (self.column,)
        found = next((name for name in wanted if name in batch), None)
        if found is None:
            raise BadRequest(
                f"the dataset has no column {' or '.join(wanted)}, only {', '.join(batch)}; give the images' column as "
                "column=NAME"
            )
        return found

    def _decoded(self, image: Any) -> NDArray[np.uint8]:
        if isinstance(image, dict):
            image = image["bytes"]
        if _is_null(image):
            raise RejectedImage("missing", "the row has no image")
        if isinstance(image, bytes):
            return decode_image(image, self.config.source.max_pixels, self.config.color_profile).pixels
        return as_rgb(image)

    def _task(self, image: Any, image_id: str | None) -> ImageTask | str:
        """The image's task, or why it cannot be used."""
        try:
            return image_task(self._decoded(image), image_id, self.config)
        except RejectedImage as error:
            return str(error)
        except BadRequest as error:
            return f"not_rgb: {error}"
        except Exception as error:
            return f"unexpected: {type(error).__name__} while reading the image: {error}"

    def _rows(self, image_id: str, source: str | None, result: Condensed | Exception) -> list[dict[str, Any]]:
        if isinstance(result, Exception):
            if not device_works(self.device):
                raise result  # a broken GPU fails for every image until its process ends
            return [_unusable(image_id, source, ": ".join(explain(result)))]
        common = {
            "image_id": image_id,
            "source": source,
            "scale": self.config.scale,
            "loss_start": result.loss_start,
            "loss_end": result.loss_end,
            "kept_start": result.kept_start,
        }
        tiles = zip(stored_tiles(self.config, result), result.corners, strict=True)
        return [
            common
            | {
                "tile_index": index,
                "top": corner and corner[0],
                "left": corner and corner[1],
                "lr": lr and {"bytes": lr},
                "hr": hr and {"bytes": hr},
            }
            for index, ((lr, hr), corner) in enumerate(tiles)
        ]


def _is_null(value: object) -> bool:
    """Whether a value is null, which numpy batches represent by None or NaN."""
    return value is None or (isinstance(value, float | np.floating) and bool(np.isnan(value)))


def _text(value: object) -> str | None:
    return None if _is_null(value) else str(value)


def _unusable(image_id: str | None, source: str | None, error: str) -> dict[str, Any]:
    return {"image_id": image_id, "source": source, "error": error}
