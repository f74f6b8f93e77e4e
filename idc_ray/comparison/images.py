"""Blocks of decoded input images in Ray's object store, shared by all arms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing
from idc_ray.models import Upscaler
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.reading import ENDS_THE_JOB, READ_SCHEMA, pixels, read_image
from idc_ray.training.pairs import Pair

#: Images of one block.
BLOCK_IMAGES = 16

#: Decoding threads; Pillow and pyarrow release the GIL.
THREADS = 4

Block: TypeAlias = pa.Table
"""Rows of :func:`idc_ray.pipeline.reading.read_image`, HR included."""


def manifest_blocks(listing: ImageListing) -> list[pa.Table]:
    """Split the manifest by ascending image id, so that the sample of a survey is in the first blocks."""
    manifest = listing.manifest.take(pc.sort_indices(listing.manifest["image_id"]))
    return [manifest.slice(begin, BLOCK_IMAGES) for begin in range(0, manifest.num_rows, BLOCK_IMAGES)]


def read_block(job: Job, manifest: pa.Table) -> Block:
    """Decode images. Unusable images are rows with a code, as in the condense job.

    Args:
        job: a job that keeps HR images.
        manifest: rows of the input's manifest.

    Raises:
        BadRequest: this machine cannot see the input.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        rows = list(pool.map(partial(read_image, job), manifest.to_pylist()))
    for row in rows:
        if row["code"] == ENDS_THE_JOB:
            raise BadRequest(row["reason"])
    return pa.Table.from_pylist(rows, schema=READ_SCHEMA)


def relabelled(blocks: Iterable[Block], network: Upscaler) -> Iterator[Block]:
    """Replace the HR images by a network's outputs."""
    index = READ_SCHEMA.get_field_index("hr")
    for block in blocks:
        labels = []
        for row in _rows(block):
            labels.append(b"" if row["code"] else network.upscale_image(pixels(row, network.scale)[0]).tobytes())
        yield block.set_column(index, READ_SCHEMA.field(index), pa.array(labels, pa.large_binary()))


def whole_pairs(blocks: Iterable[Block], scale: int) -> Iterator[Pair]:
    """Training pairs of all readable images."""
    for block in blocks:
        for row in _rows(block):
            if not row["code"]:
                lr, hr = pixels(row, scale)
                assert hr is not None
                yield Pair(row["source"], lr, hr)


def _rows(block: Block) -> Iterator[dict[str, Any]]:
    for batch in block.to_batches(max_chunksize=1):  # bytes are copied on the way: one image at a time
        yield from batch.to_pylist()
