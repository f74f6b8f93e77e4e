"""Training data: condensed sets and real images, detected by content, in any combination.

Both kinds consist of parts, shards or images, that can be read separately.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow.fs import FileType

from idc_ray.condensation.seeding import uniform
from idc_ray.config.train import TrainConfig
from idc_ray.degradation import Degrade
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.evaluation.benchmarks import holds_sets, paired_folders
from idc_ray.images import ImageListing, ImageRef, decode_png, downscale, find_images, load_instance, output_inside
from idc_ray.locate import StoragePath, joined, locate
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.index import check_shards
from idc_ray.store.manifest import read_manifest
from idc_ray.store.run_record import read_run
from idc_ray.store.shards import Fingerprint, read_shard
from idc_ray.training.pairs import NO_HR, Pair

#: Number of decoding threads; Pillow and pyarrow release the GIL.
THREADS = 4

Relabel = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""A network's output for an LR image: uint8 (h, w, 3) to uint8 (scale h, scale w, 3)."""


@dataclass(frozen=True)
class CondensedSource:
    """An output of the condense job.

    ``fingerprints`` are those of its manifest, by shard; empty for an unfinished output, which may change. The LR tiles
    of a set of HR tiles are downscaled from them.
    """

    store: StorageFolder
    scale: int
    tile_size: int
    shards: tuple[int, ...]
    digest: str
    tiles: int
    fingerprints: Mapping[int, Fingerprint]
    stored: tuple[str, ...] = ("lr", "hr")
    relabel: Relabel | None = None

    def describe(self) -> str:
        """One line for messages and records."""
        return f"{self.store.uri}: {self.tiles} condensed tiles of {self.tile_size} x {self.tile_size}"

    @property
    def expected_bytes(self) -> int:
        """Bytes of all pixels in memory."""
        return self.tiles * 3 * self.tile_size**2 * (1 + self.scale**2)

    @property
    def num_parts(self) -> int:
        """Number of shards."""
        return len(self.shards)

    def only(self, parts: Sequence[int]) -> CondensedSource:
        """This source with some of its shards only."""
        return replace(self, shards=tuple(self.shards[part] for part in parts))

    def labelled_by(self, relabel: Relabel) -> CondensedSource:
        """This source with labels for a set of LR tiles; else unchanged, as its tiles have labels."""
        return replace(self, relabel=relabel) if self.stored == ("lr",) else self

    def pairs(self, keep: Callable[[str], bool]) -> Iterator[Pair]:
        """The tiles of the images whose ids ``keep`` accepts.

        Raises:
            IdcError: a shard is missing or damaged.
        """
        for shard in self.shards:
            table = read_shard(self.store, shard, self.fingerprints.get(shard))
            table = table.select(["image_id", "tile_index", "lr", "hr", "sample_weight"])
            for batch in table.to_batches(max_chunksize=256):
                rows = [row for row in batch.to_pylist() if keep(row["image_id"])]
                with ThreadPoolExecutor(THREADS) as pool:
                    tiles = pool.map(partial(_tile, self.scale), rows)
                    yield from tiles if self.relabel is None else (_labelled(pair, self.relabel) for pair in tiles)


def _tile(scale: int, row: dict[str, Any]) -> Pair:
    lr, hr = (None if row[name] is None else decode_png(row[name]["bytes"]) for name in ("lr", "hr"))
    if lr is None:
        assert hr is not None
        lr = downscale(hr, scale)
    name = f"{row['image_id']}_{row['tile_index']:04d}"
    return Pair(name, lr, NO_HR if hr is None else hr, row["sample_weight"])


def _labelled(pair: Pair, relabel: Relabel) -> Pair:
    return replace(pair, hr=relabel(pair.lr))


@dataclass(frozen=True)
class RealSource:
    """High-resolution images; LR images are made of them by the configured degradation, unless given."""

    listing: ImageListing
    config: TrainConfig
    digest: str
    relabel: Relabel | None = None

    def describe(self) -> str:
        """One line for messages and records."""
        paired = "" if self.listing.lr_uri is None else f" with LR images of {self.listing.lr_uri}"
        return f"{self.listing.uri}: {self.num_parts} images{paired}"

    @property
    def expected_bytes(self) -> int:
        """Bytes of all pixels in memory, estimated from a few images."""
        chosen = range(0, self.num_parts, max(1, self.num_parts // 8))[:8]
        sample = [self._load(ref) for ref in self.only(chosen)._refs()]
        return int(float(np.mean([pair.lr.size + pair.hr.size for pair in sample])) * self.num_parts)

    @property
    def num_parts(self) -> int:
        """Number of images."""
        return int(self.listing.manifest.num_rows)

    def only(self, parts: Sequence[int]) -> RealSource:
        """This source with some of its images only."""
        return replace(self, listing=replace(self.listing, manifest=self.listing.manifest.take(list(parts))))

    def labelled_by(self, relabel: Relabel) -> RealSource:
        """This source with HR images made by ``relabel`` instead of the real ones."""
        return replace(self, relabel=relabel)

    def pairs(self, keep: Callable[[str], bool]) -> Iterator[Pair]:
        """The images whose ids ``keep`` accepts.

        Raises:
            BadRequest: one of them cannot be read.
        """
        refs = [ref for ref in self._refs() if keep(ref.image_id)]
        with ThreadPoolExecutor(THREADS) as pool:
            for begin in range(0, len(refs), 4 * THREADS):  # in parts, to bound memory
                pairs = pool.map(self._load, refs[begin : begin + 4 * THREADS])
                yield from pairs if self.relabel is None else (_labelled(pair, self.relabel) for pair in pairs)

    def _refs(self) -> list[ImageRef]:
        return [ImageRef.from_row(row) for row in self.listing.manifest.to_pylist()]

    def _load(self, ref: ImageRef) -> Pair:
        try:
            image = load_instance(
                ref,
                self.listing.filesystem,
                scale=self.config.scale,
                tile_size=1,
                max_pixels=self.config.max_pixels,
                keep_hr=True,
                degrade=Degrade.of(self.config),
                lr_filesystem=self.listing.lr_filesystem,
                colors=self.config.color_profile,
            )
        except RejectedImage as error:
            raise BadRequest(f"{ref.source} cannot be used for training: {error.reason}; repair or remove it") from None
        assert image.hr is not None
        return Pair(ref.source, image.lr, image.hr)


Source = CondensedSource | RealSource


def open_source(config: TrainConfig, uri: str) -> Source:
    """Open a condensed set, or a folder of images if it has no run record of a condense job.

    A folder with HR and LR images, as the export job writes, gives these pairs; its LR images are ignored if the
    degradation is not bicubic.

    Args:
        config: settings of a training; images in its output are ignored.
        uri: local path or URI.

    Raises:
        BadRequest: no data, another scale, an unfinished set, or several sets of pairs.
    """
    store = resolve(uri)
    run = read_run(store) if store.files("") else None
    if run is None:
        return _real_source(config, uri)
    if run.side("scale") != config.scale:
        raise BadRequest(
            f"{store.uri} is a set for scale {run.side('scale')}, but the scale is {config.scale}; change --scale"
        )
    manifest = read_manifest(store)
    if manifest is None and not config.allow_unfinished:
        raise BadRequest(
            f"{store.uri} is not finished; run the same condense command again, "
            "or give --allow-unfinished to train on the finished part"
        )
    shards = check_shards(store, full=False) if manifest is None else manifest.shards
    if not sum(shard.rows for shard in shards):
        raise BadRequest(f"{store.uri} has no tiles yet; run the same condense command again")
    return CondensedSource(
        store,
        config.scale,
        run.side("tile_size"),
        tuple(shard.shard for shard in shards),
        _digest([asdict(shard) for shard in shards]),
        sum(shard.rows for shard in shards),
        {} if manifest is None else {shard.shard: shard.fingerprint for shard in shards},
        run.stored,
    )


def _real_source(config: TrainConfig, uri: str) -> RealSource:
    hr, lr = _hr_and_lr(uri, config.scale)
    lr = lr if config.degradation == "bicubic" else None
    listing = find_images(hr, lr_input=lr, scale=config.scale, without=output_inside(hr, config.output))
    return RealSource(listing, config, _digest(listing.describe(lr_names=True)))


def _hr_and_lr(uri: str, scale: int) -> tuple[str, str | None]:
    """Path of the HR images and, for a folder of pairs, of the LR images."""
    storage = locate(uri)
    if not storage.local:
        return _hr_and_lr_in_store(uri, storage, scale)
    if not holds_sets(storage.path):
        return uri, None
    folders = paired_folders(storage.path, scale)
    if folders is None:
        raise BadRequest(
            f"{uri} contains several sets of HR and LR images, or one for scales other than {scale}; give one set, or "
            "its folder of HR images"
        )
    hr, lr = folders
    return str(hr), None if lr is None else str(lr)


def _hr_and_lr_in_store(uri: str, storage: StoragePath, scale: int) -> tuple[str, str | None]:
    """As :func:`_hr_and_lr` in an object store, where only the layouts ``HR, LR`` and ``xS/HR, xS/LR`` are known."""
    for prefix in ("", f"x{scale}/"):
        names = [f"{prefix}HR", f"{prefix}LR"]
        infos = storage.filesystem.get_file_info([f"{storage.path}/{name}" for name in names])
        hr, lr = (joined(uri, name) if info.type == FileType.Directory else None
                  for name, info in zip(names, infos, strict=True))  # fmt: skip
        if hr is not None:
            return hr, lr
    return uri, None


def held_out(fraction: float, seed: int) -> Callable[[str], bool]:
    """A predicate of image ids: whether an image is in the ``fraction`` that is held out of training."""
    return lambda image_id: uniform(seed, image_id, "validation") < fraction


def _digest(value: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
