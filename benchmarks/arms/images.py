"""The images of a campaign, named by their content, and the benchmarks that students are scored on."""

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

#: What the images that are held out are called among the benchmarks.
VALIDATION = "validation"

MAX_PIXELS = 100_000_000
THREADS = 8


@dataclass(frozen=True)
class Images:
    """What there is to train on, and what was held out of it; names are 16 hex digits of the file's SHA-256.

    Attributes:
        train: pairs in the order of their names.
        validation: likewise.
        digest: 16 hex digits of the names in ``train``.
    """

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    digest: str


def read_images(folders: Sequence[str], queue: Queue) -> Images:
    """All images of several folders, a file of the same content once, LR made by bicubic downscaling.

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
                log.warning("%s is left out: %s", ref.source, error)
                return None
            assert image.hr is not None
            return Pair(image.source_sha256[:16], image.lr, image.hr)

        with ThreadPoolExecutor(THREADS) as pool:
            pairs |= {pair.name: pair for pair in pool.map(read, refs) if pair is not None}
    apart = held_out(queue.validation, 0)
    ordered = [pairs[name] for name in sorted(pairs)]
    # Those that are not scored are not trained on either: what is held out does not depend on how many are scored.
    train = tuple(pair for pair in ordered if not apart(pair.name))
    if not train:
        raise BadRequest(f"{len(ordered)} images in {', '.join(folders)}, none of which is left to train on")
    validation = tuple(pair for pair in ordered if apart(pair.name))[: queue.max_validation_images]
    return Images(train, validation, content_digest([pair.name for pair in train]))


def read_benchmarks(folders: Sequence[str], images: Images, scale: int) -> dict[str, list[Pair]]:
    """What students are scored on, by set: the benchmarks' images, and those held out of the training.

    Raises:
        BadRequest: a folder without a set for this scale, or two sets of one name.
    """
    sets = find_all_sets(folders, scale, "--benchmarks") if folders else []
    read = {each.name: [Pair(image.hr.name, *image.read(scale)) for image in each.images] for each in sets}
    if VALIDATION in read:
        raise BadRequest(f"a benchmark set is called {VALIDATION}, as the images held out are; rename its folder")
    if images.validation:
        read[VALIDATION] = list(images.validation)
    if not list(chain.from_iterable(read.values())):
        raise BadRequest("there is nothing to score students on; give --benchmarks, or raise validation in the queue")
    return read
