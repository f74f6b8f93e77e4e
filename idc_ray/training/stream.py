"""Streaming of data that does not fit in memory, with Ray Data: in a random order, then shuffled over a window.

Readers decode an image once and send random patches of it, uncompressed. Streams differ between attempts even with the
same seed: patches are random, and neither the order in which readers finish nor the position in a stream is saved.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import Dataset
from ray.data.collate_fn import ArrowBatchCollateFn
from torch import Tensor

from idc_ray.condensation.seeding import integer
from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import MANIFEST_SCHEMA, crop_starts
from idc_ray.models import load_upscaler
from idc_ray.training.data import for_training, open_sources
from idc_ray.training.loop import CHECK_EVERY
from idc_ray.training.pairs import NO_HR, Pair, PairTable, Patches
from idc_ray.training.sources import CondensedSource, Relabel, Source, held_out

__all__ = ["StreamFeed", "stream_of"]

#: Number of patches in a worker's shuffle window.
WINDOW = 2048

#: Largest size of the shuffle window in bytes; large patches shorten it.
WINDOW_BYTES = 256 * 2**20

#: Real images are cut into pieces with this many patches along a side, and patches are drawn from each piece.
PIECE = 4

#: Consecutive epochs without a full batch after which a training fails; a small set can give too few rows by chance.
EMPTY_EPOCHS = 3

#: Largest number of blocks of a folder; each is one task in every epoch.
MAX_BLOCKS = 1024

#: Columns of the input rows: those of an image's row, or ``shard``; and ``part``, the number of the source.
BLOCK = pa.unify_schemas([MANIFEST_SCHEMA, pa.schema([("shard", pa.int64()), ("part", pa.int64())])])

#: A patch: uint8 pixels (height, width, 3) in ``lr``, and scale times as many rows and columns in ``hr``, or
#: nothing with online labels.
#: Rows with ``error`` have no patch; Ray Data would drop the type and message of an exception.
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("lr", pa.binary()),
        ("hr", pa.binary()),
        ("error", pa.string()),
    ]
)


def stream_of(config: TrainConfig, labels: bytes | None) -> Dataset:
    """A dataset with rows of :data:`SCHEMA` from all sources; lazy.

    A row is a random patch of a condensed tile or of a piece of a real image. In an epoch, the mean number of rows of a
    tile or piece is its weight times its LR pixels, divided by those of a large image's piece or, without real images,
    of the largest tile.
    """
    labels = None if config.labels == "online" else labels
    sources = open_sources(config, None, torch.device("cpu"))
    pixels = max(_piece_pixels(source, config) for source in sources)
    order = random.Random(config.seed)
    blocks = [block for part, source in enumerate(sources) for block in _blocks(source, part, order)]
    # All sources are shuffled together, so that the mixture is the same throughout an epoch.
    order.shuffle(blocks)
    read = _ReadAny([_Read(config, labels, _emptied(source), pixels) for source in sources])
    # from_arrow would first run a task for each block to get its metadata.
    return ray.data.from_blocks(blocks).map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=1)


def _blocks(source: Source, part: int, order: random.Random) -> list[pa.Table]:
    """Blocks of a source's rows, shards or images in random order; all have the columns of :data:`BLOCK`."""
    if isinstance(source, CondensedSource):
        rows = pa.table({"shard": pa.array(source.shards, pa.int64())})
        size = 1
    else:
        rows = source.listing.manifest
        size = max(1, math.ceil(rows.num_rows / MAX_BLOCKS))
    chosen = list(range(rows.num_rows))
    order.shuffle(chosen)  # images are sorted by name, and neighbours are often similar
    rows = pa.concat_tables([BLOCK.empty_table(), rows.take(chosen)], promote_options="default")
    rows = rows.set_column(rows.column_names.index("part"), "part", pa.array([part] * len(chosen), pa.int64()))
    return [rows.slice(row, size) for row in range(0, len(chosen), size)]


def _emptied(source: Source) -> Source:
    """The source without its rows, which would otherwise be sent to every task."""
    return source.only([]) if isinstance(source, CondensedSource) else source.only(source.listing.manifest.slice(0, 0))


def _piece_pixels(source: Source, config: TrainConfig) -> int:
    """LR pixels of a tile, or of a large image's piece without its overlap with others."""
    if isinstance(source, CondensedSource):
        return source.tile_size**2
    return ((PIECE - 1) * config.patch_size) ** 2


class _ReadAny:
    """Reads each row with the reader of its source."""

    def __init__(self, readers: list[_Read]) -> None:
        self.readers = readers

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        (part,) = batch["part"].to_pylist()
        return self.readers[part](batch)


@lru_cache(maxsize=1)  # a process reads many images
def _labeler(labels: bytes, scale: int, name: str) -> Relabel:
    return load_upscaler(labels, scale=scale, device=torch.device("cpu"), name=name).upscale_image


class _Read:
    """Reads patches of a shard's tiles or of an image's pieces; for Ray Data, usable without it.

    Args:
        config: settings.
        labels: checkpoint whose outputs replace real HR.
        source: the batches' source, without rows.
        pixels: number of LR pixels that gives one row per epoch, on average, at weight 1.
    """

    def __init__(self, config: TrainConfig, labels: bytes | None, source: Source, pixels: int) -> None:
        self.config, self.labels, self.source, self.pixels = config, labels, source, pixels

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        try:
            yield from self._tables(batch)
        except IdcError as error:
            yield pa.Table.from_pylist([{"error": str(error)}], schema=SCHEMA)

    def _tables(self, batch: pa.Table) -> Iterator[pa.Table]:
        config, source = self.config, self.source
        apart = held_out(config.held_out_share, config.seed)
        chosen: Source = (
            source.only(batch["shard"].to_pylist()) if isinstance(source, CondensedSource) else source.only(batch)
        )
        if self.labels is not None:
            chosen = chosen.labelled_by(_labeler(self.labels, config.scale, str(config.labels_from)))
        for pair in for_training(config, chosen.pairs(lambda image_id: not apart(image_id))):
            pieces = list(_pieces(pair, config))
            area = pair.lr.shape[0] * pair.lr.shape[1] / len(pieces)  # without the overlap of pieces
            yield _rows(pieces, pair.weight * area / self.pixels, config.patch_size)


def _pieces(pair: Pair, config: TrainConfig) -> Iterator[Pair]:
    """The pair itself if it is small, otherwise overlapping pieces that together contain every patch."""
    side, scale = PIECE * config.patch_size, config.scale
    height, width = pair.lr.shape[:2]
    for top in crop_starts(height, min(side, height), side - config.patch_size + 1):
        for left in crop_starts(width, min(side, width), side - config.patch_size + 1):
            rows, columns = slice(top, top + side), slice(left, left + side)
            high = tuple(slice(scale * part.start, scale * part.stop) for part in (rows, columns))
            yield Pair(pair.name, pair.lr[rows, columns], pair.hr[high])


def _rows(pieces: Iterable[Pair], times: float, patch_size: int) -> pa.Table:
    """Random patches of pieces, on average ``times`` of each.

    Their number is random in each epoch, otherwise some pieces would never be used. Patches are cut here rather than on
    the worker, as a piece has 16 times the bytes of a patch.
    """
    rows = []
    for piece in pieces:
        for _ in range(math.floor(times + random.random())):
            patch = _random_patch(piece, patch_size)
            height, width = patch.lr.shape[:2]
            pixels = {"lr": patch.lr.tobytes(), "hr": patch.hr.tobytes()}
            rows.append({"name": patch.name, "height": height, "width": width, **pixels})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _random_patch(piece: Pair, size: int) -> Pair:
    """A patch at a random position; the whole piece if it is smaller, which :class:`StreamFeed` then rejects."""
    height, width = piece.lr.shape[:2]
    top, left = (random.randint(0, max(0, side - size)) for side in (height, width))
    scale = piece.hr.shape[0] // height
    high = piece.hr[scale * top : scale * (top + size), scale * left : scale * (left + size)]
    return Pair(piece.name, piece.lr[top : top + size, left : left + size], high)


class _Collate(ArrowBatchCollateFn):
    """Converts rows to a table of pairs; runs in Ray Data's background thread."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def __call__(self, batch: pa.Table) -> Any:
        rows = batch.to_pylist()
        for row in rows:
            if row["error"] is not None:
                raise BadRequest(row["error"])
        return PairTable.build([self._pair(row) for row in rows], self.scale)

    def _pair(self, row: dict[str, Any]) -> Pair:
        height, width, scale = row["height"], row["width"], self.scale
        lr, hr = (np.frombuffer(bytearray(row[name]), np.uint8) for name in ("lr", "hr"))  # writable, for torch
        hr = hr.reshape(scale * height, scale * width, 3) if len(hr) else NO_HR
        return Pair(row["name"], lr.reshape(height, width, 3), hr)


class StreamFeed:
    """Streamed patches with random flips and rotations: a :class:`idc_ray.training.pairs.Feed`.

    Args:
        config: settings.
        shard: this worker's part of :func:`stream_of`.
        device: device of the patches.
    """

    def __init__(self, config: TrainConfig, shard: Any, device: torch.device) -> None:
        self.config, self.shard, self.device = config, shard, device
        self._tables: Iterator[PairTable] | None = None
        recent = 2 * CHECK_EVERY[device.type]  # the losses of older steps were read and are finite
        self._names: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=recent)

    def inputs(self, step: int, rank: int, world: int) -> tuple[Tensor, ...]:
        """See :class:`idc_ray.training.pairs.Feed`: the patches themselves.

        Raises:
            BadRequest: fewer patches than a batch, an image smaller than a patch, or an image that cannot be read.
        """
        if self._tables is None:
            self._tables = self._epochs(step, rank, world)
        table, size = next(self._tables).to(self.device), self.config.patch_size
        self._names.append((step, table.names))
        try:
            patches = Patches(table, size, len(table.names), integer(self.config.seed, rank))
        except ValueError as error:
            raise BadRequest(f"{error}; lower --patch-size ({size}), or remove such images") from None
        return patches.cut(patches.draw_each(step))

    def patches(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`idc_ray.training.pairs.Feed`."""
        lr, hr = inputs
        return lr, hr

    def names(self, step: int) -> list[str]:
        """See :class:`idc_ray.training.pairs.Feed`; this worker's part."""
        return list(dict(self._names).get(step, ()))

    def _epochs(self, first_step: int, rank: int, world: int) -> Iterator[PairTable]:
        size = self.config.batch_size // world
        window = max(min(WINDOW, WINDOW_BYTES // _patch_bytes(self.config)), size)
        epoch = empty = 0
        while True:
            tables = self.shard.iter_torch_batches(
                batch_size=size,
                collate_fn=_Collate(self.config.scale),
                local_shuffle_buffer_size=window,
                local_shuffle_seed=integer(self.config.seed, rank, first_step, epoch) % 2**32,
                drop_last=False,
            )
            patches, batches = 0, 0
            for table in tables:
                patches += len(table.names)
                if len(table.names) == size:  # patches of a short last batch would have a larger weight
                    batches += 1
                    yield table
            empty = 0 if batches else empty + 1
            if empty == EMPTY_EPOCHS:
                raise BadRequest(
                    f"worker {rank} gets {patches} patches per epoch, fewer than its {size} of a batch; "
                    "lower --batch-size, or raise --resident-bytes so that the data stays in memory"
                )
            epoch += 1


def _patch_bytes(config: TrainConfig) -> int:
    """Size of a patch's pixels in bytes."""
    return 3 * config.patch_size**2 * (1 + config.scale**2)
