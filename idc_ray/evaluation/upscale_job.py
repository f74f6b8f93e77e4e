"""The upscale job: a network applied to a user's photographs, file by file; it can be interrupted and continued."""

from __future__ import annotations

import contextlib
import io
import logging
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from idc_ray.config.upscale import UpscaleConfig
from idc_ray.errors import BadRequest, IdcError, QuarantinedImages, RejectedImage
from idc_ray.evaluation.network import Network, cost_per_pixel, open_network
from idc_ray.images import ImageListing, ImageRef, decode_rgb, find_images, output_inside, read_encoded, rgb_profile
from idc_ray.locate import holds, locate
from idc_ray.pipeline.progress import Heartbeat, Progress
from idc_ray.pipeline.summary import SHOWN_REASONS
from idc_ray.redact import printable
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.threads import ordered_map
from idc_ray.units import duration, estimate_text, size

log = logging.getLogger(__name__)

#: File in the output that records the network and settings of the results.
RECORD = "upscale.json"

#: Settings, besides the network and its scale, that change the results.
RESULT_SETTINGS = {"format", "tile", "tile_overlap", "self_ensemble"}

#: Pillow's name and settings of each format.
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "png": ("PNG", {"compress_level": 4}),  # half the time of Pillow's default for about 1 % more bytes
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"lossless": True}),
}

#: Number of images that a dry run reads.
SAMPLED_IMAGES = 8

Image = NDArray[np.uint8]


@dataclass
class _Result:
    """Result for one image: its pixels, or the error."""

    source: str
    name: str
    picture: Image | None = None
    profile: bytes | None = None
    fault: RejectedImage | None = None


def run_upscale(config: UpscaleConfig) -> int:
    """Upscale the images of a configuration; a repeated call continues with the missing ones.

    An image is done if its result exists and is not older than the image. An image that cannot be read is reported and
    skipped. Images are read as by :func:`idc_ray.images.decode_rgb`: the upper 8 of 16 bits are used, transparent
    pixels are composited over white, the EXIF orientation is applied. A result is 8-bit RGB, with the image's colour
    profile if it is an RGB one; other metadata are not copied.

    Returns:
        The exit code: 0.

    Raises:
        BadRequest: invalid settings; nothing was written.
        QuarantinedImages: some images could not be upscaled, and ``strict`` is set.
        IdcError: none of the images could be upscaled.
    """
    storage = resolve(config.output)
    with Heartbeat("listing the images"):
        listing = _find(config)
    names = output_names(listing.manifest["source"].to_pylist(), config.format)

    def show_tile(done: int, tiles: int) -> None:
        progress.step(f"tile {done + 1} of {tiles}")

    with Heartbeat("loading the network"):
        network = open_network(config, None if config.dry_run else show_tile)
    settings = {"network": network.sha256, "scale": network.scale, **config.model_dump(include=RESULT_SETTINGS)}
    replaced = _check_output(storage, settings, set(names), config.overwrite)
    if config.dry_run:
        left = _todo(listing, names, {} if config.overwrite else storage.all_files())
        with Heartbeat("reading a few images and timing the network"):
            print(_estimate(config, listing, network, left))
        return 0
    storage.check_writable()
    with Heartbeat("listing finished results"):
        _claim(storage, settings, replaced)
        todo = _todo(listing, names, storage.all_files())
    log.info("%d images to upscale on %s, %d already done", len(todo), network.device, len(names) - len(todo))
    progress = Progress(len(names), len(names) - len(todo), failure="failed")
    failed: list[_Result] = []
    with progress.ticking():
        results = _upscaled(todo, listing, config, network, progress)
        for result in ordered_map(lambda each: _save(each, storage, config.format), results, threads=1):
            if result.fault is not None:
                failed.append(result)
                log.warning("%s cannot be upscaled: %s", printable(result.source), printable(str(result.fault)))
            progress.update({"outcome": "done" if result.fault is None else "quarantined"})
    print(_summary(progress, failed, storage))
    return _verdict(config, failed, len(names))


def output_names(sources: Sequence[str], ending: str) -> list[str]:
    """Names of the results: the images' names with another extension.

    If images differ only in their extensions, such as ``a.png`` and ``a.jpg``, these are kept: ``a.jpg.png``.

    Raises:
        BadRequest: two results would still have the same name.
    """
    stems = [posixpath.splitext(source)[0] for source in sources]
    count = Counter(stems)
    names = [f"{stem if count[stem] == 1 else source}.{ending}" for stem, source in zip(stems, sources, strict=True)]
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        both = [source for source, name in zip(sources, names, strict=True) if name == twice]
        raise BadRequest(f"the results of {' and '.join(both)} would both be {twice}; rename one of the images")
    return names


def _find(config: UpscaleConfig) -> ImageListing:
    """The images, except those in an output folder inside the input."""
    if holds(locate(config.output), locate(config.input)):
        raise BadRequest(
            f"the output {config.output} is or contains the input {config.input}, whose files it could overwrite; "
            "choose another --output"
        )
    listing = find_images(config.input, without=output_inside(config.input, config.output))
    log.info("%d images in %s", listing.manifest.num_rows, listing.uri)
    if listing.ignored:
        log.info("ignored %d files without an image extension", listing.ignored)
    return listing


def _check_output(
    storage: StorageFolder, settings: dict[str, Any], names: set[str], overwrite: bool
) -> list[str] | None:
    """The files that ``overwrite`` replaces; None if the output has results of the same settings, to be continued.

    Files without a record, or with a record of other settings, do not count as results.

    Raises:
        BadRequest: there are files to replace, or another record, and ``overwrite`` is not set.
    """
    record = storage.read_json(RECORD, "give --overwrite, or another --output")
    if record == settings and not overwrite:
        return None
    present = sorted(names & set(storage.all_files()))
    if not overwrite and (present or record is not None):
        held = (
            f"contains results of other settings ({_differences(record, settings)})"
            if record is not None
            else f"contains {len(present)} of the files that would be written, such as {present[0]}"
        )
        raise BadRequest(f"{storage.uri} {held}; give another --output, or --overwrite to replace them")
    return present


def _claim(storage: StorageFolder, settings: dict[str, Any], replaced: list[str] | None) -> None:
    """Delete the ``replaced`` files and write the record; None: the record is already there."""
    if replaced is None:
        return
    storage.delete(RECORD)  # first: without it, remaining files do not count as finished
    for name in replaced:
        storage.delete(name)
    storage.write_json(RECORD, settings)


def _differences(record: dict[str, Any], settings: dict[str, Any]) -> str:
    changed = [name for name in settings if record.get(name) != settings[name]]
    return ", ".join(changed) or RECORD


def _todo(listing: ImageListing, names: list[str], finished: dict[str, int]) -> list[tuple[ImageRef, str]]:
    """Images whose result is missing or older than the image, and the results' names."""
    refs = (ImageRef.from_row(row) for row in listing.manifest.to_pylist())
    return [(ref, name) for ref, name in zip(refs, names, strict=True) if finished.get(name, -1) < max(0, ref.mtime_ns)]


def _upscaled(
    todo: list[tuple[ImageRef, str]], listing: ImageListing, config: UpscaleConfig, network: Network, progress: Progress
) -> Iterator[_Result]:
    for ref, name in todo:
        result = _Result(ref.source, name)
        progress.begin(printable(ref.source))
        try:
            pixels, result.profile = _read(ref, listing, config.max_pixels)
            result.picture = network.upscale(pixels)
        except RejectedImage as error:
            result.fault = error
        except (MemoryError, torch.OutOfMemoryError):
            result.fault = RejectedImage("out_of_memory", f"not enough memory; use --tile {(config.tile or 512) // 2}")
        yield result


def _read(ref: ImageRef, listing: ImageListing, max_pixels: int) -> tuple[Image, bytes | None]:
    data = read_encoded(ref, listing.filesystem, max_pixels)
    return decode_rgb(data, max_pixels), rgb_profile(data)


def _save(result: _Result, storage: StorageFolder, ending: str) -> _Result:
    """Write a result and free its pixels. Runs in a thread, as encoding can take longer than a GPU's next image."""
    if result.picture is not None:
        try:
            storage.write(result.name, _encode(result.picture, ending, result.profile))
        except RejectedImage as error:
            result.fault = error
        result.picture = None
    return result


def _encode(picture: Image, ending: str, profile: bytes | None) -> bytes:
    kind, options = FORMATS[ending]
    buffer = io.BytesIO()
    try:
        Pillow.fromarray(picture).save(buffer, kind, icc_profile=profile, **options)
    except (OSError, ValueError) as error:  # a side is at most 65,535 pixels in JPEG, 16,383 in WebP
        height, width = picture.shape[:2]
        reason = f"{width} x {height} pixels as {kind}: {error}; use --format png"
        raise RejectedImage("too_large_result", reason) from error
    return buffer.getvalue()


def _summary(progress: Progress, failed: list[_Result], storage: StorageFolder) -> str:
    lines = [f"images          {progress.done} done, {len(failed)} failed"]
    lines += [f"  {printable(each.source)}: {printable(str(each.fault))}" for each in failed[:SHOWN_REASONS]]
    if len(failed) > SHOWN_REASONS:
        lines.append(f"  and {len(failed) - SHOWN_REASONS} more, see above")
    return "\n".join([*lines, f"output          {storage.uri}"])


def _verdict(config: UpscaleConfig, failed: list[_Result], images: int) -> int:
    if failed and config.strict:
        raise QuarantinedImages(
            f"{len(failed)} images could not be upscaled and --strict was given; see the reasons above, and repair or "
            "remove the images"
        )
    if len(failed) == images:
        raise IdcError(f"none of the {images} images could be upscaled; see the reasons above")
    return 0


def _estimate(config: UpscaleConfig, listing: ImageListing, network: Network, todo: list[tuple[ImageRef, str]]) -> str:
    """Images, pixels, bytes and time, estimated from a few images and one upscaled crop."""
    pixels: list[Image] = []
    sample = todo[:: max(1, len(todo) // SAMPLED_IMAGES)][:SAMPLED_IMAGES]
    for ref, _ in sample:
        with contextlib.suppress(RejectedImage):
            pixels.append(_read(ref, listing, config.max_pixels)[0])
    images = listing.manifest.num_rows
    known = [bytes_ for bytes_ in listing.manifest["size"].to_pylist() if bytes_ >= 0]
    read = f", {size(sum(known))}" if known else ""
    lines = {"images": f"{images} in {listing.uri}{read}", "done before": f"{images - len(todo)}"}
    if pixels:
        each = sum(image.shape[0] * image.shape[1] for image in pixels) / len(pixels)
        seconds, picture = cost_per_pixel(config, network, pixels[0])
        written = len(_encode(picture, config.format, None)) / (picture.shape[0] * picture.shape[1])
        lines["sizes"] = f"{each / 1e6:.3g} megapixels on average, {each * network.scale**2 / 1e6:.3g} when upscaled"
        lines["bytes"] = f"about {size(written * each * network.scale**2 * len(todo))} to write"
        lines["time"] = f"about {duration(seconds * each * len(todo))} on {network.device}"
    lines["estimated from"] = f"{len(sample)} images, {len(sample) - len(pixels)} of which cannot be read"
    return estimate_text(lines.items())
