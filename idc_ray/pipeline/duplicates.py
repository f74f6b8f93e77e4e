"""Removes copies from a listing: images with identical files, and frames that look like another one of their clip."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from idc_ray.errors import IdcError, RejectedImage
from idc_ray.images import ImageListing, ImageRef, decode_rgb, read_encoded
from idc_ray.images.clips import clip_of
from idc_ray.images.names import open_path
from idc_ray.images.parquet import row_digests
from idc_ray.images.perceptual import NEAR, near_duplicates, perceptual_hash
from idc_ray.pipeline.outage import input_root, input_samples, outage
from idc_ray.store.threads import ordered_map

#: Bytes at the end of a file that are compared first: the coded pixels of different pictures differ there.
TAIL = 4096
#: Groups, and sources of a group, that a run's record names.
SHOWN_GROUPS, SHOWN_SOURCES = 100, 10


def without_copies(listing: ImageListing, max_pixels: int) -> ImageListing:
    """The listing with the first image, by source, of each group of copies; its ``duplicates`` has the others.

    The choice depends on names and bytes only. A file is read if others have its size and its last bytes; Parquet
    files are read once. Unreadable images stay, and are quarantined later.

    Args:
        listing: the images; pairs are copies if HR and LR are equal.
        max_pixels: see :func:`idc_ray.images.load_instance`.

    Raises:
        IdcError: none can be read, as where a store is down: copies would be condensed too.
    """
    suspects = listing.manifest
    rows = _row_digests(listing)
    keys: Sequence[Any] = suspects["size"].to_pylist()
    for key in (_tail, _content):
        suspects, _ = _sharing(suspects, keys)
        keys = list(ordered_map(lambda ref, key=key: key(ref, listing, max_pixels, rows), _refs(suspects)))  # type: ignore[misc]
    suspects, keys = _sharing(suspects, keys)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    copies: list[str] = []
    for source, image_id, key in zip(
        *(suspects[name].to_pylist() for name in ("source", "image_id")), keys, strict=True
    ):
        if key in groups:
            copies.append(image_id)
        groups[key].append(source)
    return _without(listing, copies, list(groups.values()))


def without_repeated_frames(listing: ImageListing, clips: str, max_pixels: int) -> ImageListing:
    """The listing without frames that look like another one of their clip; its ``duplicates`` has them too.

    The choice depends on names and pixels only. All frames are decoded; unreadable ones stay, and are quarantined
    later.

    Args:
        listing: the images.
        clips: see :func:`idc_ray.images.clips.clip_of`.
        max_pixels: see :func:`idc_ray.images.load_instance`.

    Raises:
        IdcError: none can be read, as where a store is down.
    """

    def hashed(ref: ImageRef) -> int | None:
        try:
            return perceptual_hash(decode_rgb(read_encoded(ref, listing.filesystem, max_pixels), max_pixels))
        except RejectedImage as error:
            _check_outage(error, ref, listing)
            return None

    frames: defaultdict[str, list[tuple[str, str, int]]] = defaultdict(list)
    manifest = listing.manifest
    for ref, value in zip(_refs(manifest), ordered_map(hashed, _refs(manifest)), strict=True):
        if value is not None:
            frames[clip_of(ref.source, clips)].append((ref.image_id, ref.source, value))
    copies, groups = [], []
    for clip in frames.values():
        first = near_duplicates((value for _, _, value in clip), NEAR)
        group: defaultdict[int, list[str]] = defaultdict(list)
        for (image_id, source, _), at in zip(clip, first, strict=True):
            if at is not None:
                copies.append(image_id)
                group[at].append(source)
        groups += [[clip[at][1], *sources] for at, sources in group.items()]
    return _without(listing, copies, groups)


def _without(listing: ImageListing, copies: list[str], groups: list[list[str]]) -> ImageListing:
    """The listing without some images, which are added to its ``duplicates``."""
    if copies:
        keep = pc.invert(pc.is_in(listing.manifest["image_id"], pa.array(copies)))
        listing = replace(listing, manifest=listing.manifest.filter(keep))
    before = listing.duplicates or {"images": 0, "groups": []}
    shown = [*before["groups"], *(sources[:SHOWN_SOURCES] for sources in groups)][:SHOWN_GROUPS]
    return replace(listing, duplicates={"images": before["images"] + len(copies), "groups": shown})


def _sharing(table: pa.Table, keys: Sequence[Any]) -> tuple[pa.Table, list[Any]]:
    """Rows whose key is not unique."""
    counts = Counter(keys)
    keep = [key is not None and counts[key] > 1 for key in keys]
    return table.filter(pa.array(keep, pa.bool_())), [key for key, kept in zip(keys, keep, strict=True) if kept]


def _refs(table: pa.Table) -> Iterator[ImageRef]:
    for batch in table.to_batches(max_chunksize=4096):
        yield from map(ImageRef.from_row, batch.to_pylist())


def _row_digests(listing: ImageListing) -> dict[str, list[str | None]]:
    """Digests of the rows of each Parquet file."""
    is_row = pc.and_(pc.greater_equal(listing.manifest["row"], 0), pc.less(listing.manifest["size"], 0))
    rows = listing.manifest.filter(is_row).select(["path", "column"])
    files = [(each["path"], each["column"]) for each in rows.group_by(["path", "column"]).aggregate([]).to_pylist()]
    digests = ordered_map(lambda file: row_digests(listing.filesystem, *file), files)
    return {path: found for (path, _), found in zip(files, digests, strict=True)}


def _tail(ref: ImageRef, listing: ImageListing, max_pixels: int, rows: dict[str, list[str | None]]) -> str | None:
    if ref.row >= 0:  # in a file with others
        return _content(ref, listing, max_pixels, rows)
    try:
        with open_path(listing.filesystem, ref.path) as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            return hashlib.sha256(file.read(TAIL)).hexdigest()
    except OSError:
        return _content(ref, listing, max_pixels, rows)  # tries again, and knows an outage


def _content(ref: ImageRef, listing: ImageListing, max_pixels: int, rows: dict[str, list[str | None]]) -> str | None:
    if ref.path in rows:
        return rows[ref.path][ref.row] if ref.row < len(rows[ref.path]) else None
    try:
        digest = hashlib.sha256(read_encoded(ref, listing.filesystem, max_pixels))
        if ref.lr_path is not None:
            partner = replace(ref, path=ref.lr_path)
            digest.update(read_encoded(partner, listing.lr_filesystem or listing.filesystem, max_pixels))
    except RejectedImage as error:
        _check_outage(error, ref, listing)
        return None
    return digest.hexdigest()


def _check_outage(error: RejectedImage, ref: ImageRef, listing: ImageListing) -> None:
    """IdcError if no image of the input can be read."""
    reason = outage(error, ref, listing.filesystem, listing.uri, input_root(listing), input_samples(listing))
    if reason is not None:
        raise IdcError(reason) from None
