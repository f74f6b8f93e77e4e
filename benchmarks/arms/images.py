"""The images of a campaign, named by content, and the benchmarks for scoring students."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from pyarrow.fs import FileSystem

from benchmarks.arms.queue import Queue, content_digest
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.evaluation.benchmarks import find_all_sets
from idc_ray.images import ImageRef, find_images, load_instance
from idc_ray.training.pairs import Pair
from idc_ray.training.sources import held_out

__all__ = ["VALIDATION", "Images", "read_benchmarks", "read_images"]

log = logging.getLogger(__name__)

#: Name of the held-out images among the benchmark sets.
VALIDATION = "validation"

MAX_PIXELS = 100_000_000
THREADS = 8


@dataclass(frozen=True)
class Images:
    """Training images and held-out images; names are 16 hex digits of the file's SHA-256.

    Attributes:
        train: pairs, sorted by name.
        validation: held-out pairs, sorted by name.
        digest: 16 hex digits of the names in ``train``.
    """

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    digest: str


def read_images(folders: Sequence[str], queue: Queue) -> Images:
    """Read all images of several folders without duplicate files; LR images are made by bicubic downscaling.

    Raises:
        BadRequest: a folder without images, or no image is left to train on.
    """
    pairs: dict[str, Pair] = {}
    for folder in folders:
        listing = find_images(folder, scale=queue.scale)
        refs = [ImageRef.from_row(row) for row in listing.manifest.to_pylist()]

        def read(ref: ImageRef, filesystem: FileSystem = listing.filesystem) -> Pair | None:
            try:
                image = load_instance(
                    ref, filesystem, scale=queue.scale, tile_size=1, max_pixels=MAX_PIXELS, keep_hr=True
                )
            except RejectedImage as error:
                log.warning("skipped %s: %s", ref.source, error)
                return None
            assert image.hr is not None
            return Pair(image.source_sha256[:16], image.lr, image.hr)

        with ThreadPoolExecutor(THREADS) as pool:
            pairs |= {pair.name: pair for pair in pool.map(read, refs) if pair is not None}
    apart = held_out(queue.validation, 0)
    ordered = [pairs[name] for name in sorted(pairs)]
    # Held-out images beyond max_validation_images are not used for training either.
    train = tuple(pair for pair in ordered if not apart(pair.name))
    if not train:
        raise BadRequest(
            f"all {len(ordered)} images in {', '.join(folders)} are held out; lower validation in the queue"
        )
    validation = tuple(pair for pair in ordered if apart(pair.name))[: queue.max_validation_images]
    return Images(train, validation, content_digest([pair.name for pair in train]))


def read_benchmarks(folders: Sequence[str], images: Images, scale: int) -> dict[str, list[Pair]]:
    """Images for scoring students, by set: the benchmarks and the held-out images.

    Raises:
        BadRequest: a folder without a set for this scale, or two sets with the same name.
    """
    sets = find_all_sets(folders, scale, "--benchmarks") if folders else []
    read = {each.name: [Pair(image.hr.name, *image.read(scale)) for image in each.images] for each in sets}
    if VALIDATION in read:
        raise BadRequest(f"a benchmark set is named {VALIDATION}, like the held-out images; rename its folder")
    if images.validation:
        read[VALIDATION] = list(images.validation)
    if not list(chain.from_iterable(read.values())):
        raise BadRequest("there is nothing to score students on; give --benchmarks, or raise validation in the queue")
    return read
