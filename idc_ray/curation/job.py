"""The curate job: tiles of images that pass the filters, without near-duplicates, and a report on the others."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow.fs as pafs
from numpy.typing import NDArray
from PIL import Image

from idc_ray.config.curate import CurateConfig
from idc_ray.curation.measures import KEPT, MEASURES, judge
from idc_ray.errors import RejectedImage
from idc_ray.images import ImageRef, crop_starts, encode_png, load_instance
from idc_ray.images.perceptual import near_duplicates, perceptual_hash
from idc_ray.lifecycle import print_plan, ray_cluster
from idc_ray.pipeline.cluster import data_settings, join
from idc_ray.pipeline.each_image import ImageJob, find_input_images, image_job
from idc_ray.pipeline.inputs import only
from idc_ray.pipeline.progress import Heartbeat, Show
from idc_ray.report import Options, write_own_report
from idc_ray.report.curation import COPIES, RECORD
from idc_ray.report.pictures import webp
from idc_ray.results import CurateResult, Quarantined
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.threads import ordered_map
from idc_ray.units import duration, estimate_text, size

log = logging.getLogger(__name__)

#: Folders of the output: kept tiles, verdicts by image, hashes by image, pictures of what was dropped.
TILES, VERDICTS, HASHES, PICTURES = "tiles", "images", "hashes", "dropped"

#: Dropped tiles or images of a step that the report shows, and their longest side in pixels.
SHOWN, SIDE = 12, 192

#: Tiles whose values make the histograms, and bars of a histogram.
HISTOGRAM_TILES, BARS = 20_000, 30

#: Images that a dry run reads.
SAMPLED_IMAGES = 8

FIX = "delete that file; its image is curated again"

Pixels = NDArray[np.uint8]


def curate(config: CurateConfig) -> int:
    """The command: :func:`run_curate`, or an estimate.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_curate`.
    """
    if print_plan(config, lambda _: _estimate(config)):
        result = run_curate(config, "lines")
        print(f"{result.summary}\noutput          {result.output}")
    return 0


def run_curate(config: CurateConfig, show: Show = "log") -> CurateResult:
    """Curate; a repeated call continues with the images that are missing or have changed.

    Writes ``tiles/IMAGE-ID_TOP_LEFT.png``, ``images/IMAGE-ID.json`` with the verdict on each tile,
    ``hashes/IMAGE-ID.json``, and at the end ``curation.json`` with settings and counts, and ``report.html``.

    Args:
        config: the settings; ``dry_run`` is ignored.
        show: where progress is shown.

    Raises:
        BadRequest: no images, or an output of other settings.
        Locked: another process works on the output.
        QuarantinedImages: images were quarantined, and ``strict`` is set.
        Interrupted: SIGINT or SIGTERM.
        IdcError: no image could be read, or a tile not be written.
    """
    with image_job(config, config.digest(), RECORD, show) as job:
        copies = _on_ray(config, job)
        with Heartbeat("counting tiles and writing the report"):
            quarantined = job.quarantined()
            counts, results = _results(config, job, copies, quarantined)
            job.finish(counts, results)
            for name, page in (write_own_report(job.storage, Options()) if config.report else {}).items():
                job.tracker.log_artifact(page, name)
    return CurateResult(
        output=job.storage.uri,
        num_images=counts["images"] - counts["quarantined"] - counts[COPIES],
        num_tiles=counts[KEPT],
        num_near_duplicates=counts[COPIES],
        dropped={name: count for name, count in counts.items() if name in MEASURES},
        quarantined=quarantined,
        summary="\n".join(f"{name:<15} {count:,}" for name, count in counts.items()),
    )


def _on_ray(config: CurateConfig, job: ImageJob) -> dict[str, str]:
    """Hash the images, and cut those that are no near-duplicates; returns the original of each near-duplicate."""
    filesystem = job.listing.filesystem
    hashed = job.missing(HASHES)[0] if config.near_duplicates is not None else job.listing.manifest.slice(0, 0)
    cut, stale = job.missing(VERDICTS)
    copies = {} if hashed.num_rows else _copies(config, job)
    if not hashed.num_rows and copies.keys() >= set(cut["image_id"].to_pylist()):
        return copies
    with ray_cluster(lambda: join(config.ray_address)), data_settings():
        job.run(hashed, HASHES, partial(_hash, config, filesystem))
        copies = _copies(config, job)
        for image_id in stale | copies.keys():
            _forget(job.storage, image_id)
        cut = job.missing(VERDICTS)[0]  # images whose hash was rejected are quarantined by now
        wanted = set(cut["image_id"].to_pylist()) - copies.keys()
        job.run(only(cut, wanted), VERDICTS, partial(_cut, config, filesystem, job.storage))
    return copies


def _read(config: CurateConfig, filesystem: pafs.FileSystem, ref: ImageRef) -> Pixels:
    return load_instance(
        ref, filesystem, scale=1, tile_size=config.tile, max_pixels=config.max_pixels, keep_hr=False,
        degrade=lambda hr, scale, _: hr, colors=config.color_profile,
    ).lr  # fmt: skip


def _hash(config: CurateConfig, filesystem: pafs.FileSystem, ref: ImageRef) -> dict[str, Any]:
    image = _read(config, filesystem, ref)
    return {"hash": f"{perceptual_hash(image):016x}", "pixels": image.shape[0] * image.shape[1]}


def _tiles(config: CurateConfig, image: Pixels) -> Iterator[tuple[int, int, Pixels]]:
    for top in crop_starts(image.shape[0], config.tile, config.tile):
        for left in crop_starts(image.shape[1], config.tile, config.tile):
            yield top, left, image[top : top + config.tile, left : left + config.tile]


def _cut(config: CurateConfig, filesystem: pafs.FileSystem, storage: StorageFolder, ref: ImageRef) -> dict[str, Any]:
    verdicts = []
    for top, left, tile in _tiles(config, _read(config, filesystem, ref)):
        verdict, values = judge(tile, config.filters.model_dump())
        if verdict == KEPT:
            storage.write(_tile_name(ref.image_id, top, left), encode_png(tile))
        verdicts.append([top, left, verdict, values])
    return {"tiles": verdicts}


def _tile_name(image_id: str, top: int, left: int) -> str:
    return f"{TILES}/{image_id}_{top:05d}_{left:05d}.png"


def _forget(storage: StorageFolder, image_id: str) -> None:
    """Delete an image's tiles, and then its record."""
    for top, left, verdict, _ in _verdicts(storage, image_id):
        if verdict == KEPT:
            storage.delete(_tile_name(image_id, top, left))
    storage.delete(f"{VERDICTS}/{image_id}.json")


def _verdicts(storage: StorageFolder, image_id: str) -> list[Any]:
    record = storage.read_json(f"{VERDICTS}/{image_id}.json", FIX)
    return [] if record is None else list(record["tiles"])


def _copies(config: CurateConfig, job: ImageJob) -> dict[str, str]:
    """The original's id of each near-duplicate: of images that look alike the largest in pixels, in bytes, by name."""
    if config.near_duplicates is None:
        return {}
    rows = job.listing.manifest.select(["image_id", "size"]).to_pylist()
    with Heartbeat("comparing the images' hashes"):
        records = ordered_map(lambda row: job.storage.read_json(f"{HASHES}/{row['image_id']}.json", FIX), rows)
        known = [(row, record) for row, record in zip(rows, records, strict=True) if record is not None]
        known.sort(key=lambda pair: (-pair[1]["pixels"], -pair[0]["size"]))
        found = near_duplicates((int(record["hash"], 16) for _, record in known), config.near_duplicates)
    ids = [row["image_id"] for row, _ in known]
    return {image_id: ids[at] for image_id, at in zip(ids, found, strict=True) if at is not None}


@dataclass(frozen=True)
class _Example:
    """A dropped tile or image that the report shows."""

    step: str
    row: dict[str, Any]
    place: tuple[int, int] | None = None
    value: float | None = None
    original: dict[str, Any] | None = None


@dataclass
class _Counted:
    """What the report states of the verdicts."""

    tiles: Counter[str] = field(default_factory=Counter)
    values: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    dropped: defaultdict[str, list[_Example]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: dict[str, Any], verdicts: list[Any]) -> None:
        shown = set()
        for top, left, verdict, values in verdicts:
            self.tiles[verdict] += 1
            for name, value in values.items():
                if len(self.values[name]) < HISTOGRAM_TILES:
                    self.values[name].append(value)
            if verdict != KEPT and verdict not in shown and len(self.dropped[verdict]) < SHOWN:
                shown.add(verdict)  # one tile of an image
                self.dropped[verdict].append(_Example(verdict, row, (top, left), values[verdict]))


def _results(
    config: CurateConfig, job: ImageJob, copies: dict[str, str], quarantined: tuple[Quarantined, ...]
) -> tuple[dict[str, int], dict[str, Any]]:
    """Counts, and what else the report shows."""
    left_out = copies.keys() | {image.image_id for image in quarantined}
    rows = {row["image_id"]: row for row in job.listing.manifest.sort_by("image_id").to_pylist()}
    kept = [image_id for image_id in rows if image_id not in left_out]  # ids are hashes: the first ones are a sample
    counted = _Counted()
    for image_id, verdicts in zip(kept, ordered_map(partial(_verdicts, job.storage), kept), strict=True):
        counted.add(rows[image_id], verdicts)
    examples = [_Example(COPIES, rows[copy], original=rows[copies[copy]]) for copy in sorted(copies)[:SHOWN]]
    examples += [example for name in MEASURES for example in counted.dropped[name]]
    pictures = ordered_map(partial(_picture, config, job), examples)
    applied = [name for name, limit in config.filters.model_dump().items() if limit is not None]
    tiles = {"tiles": counted.tiles.total()} | {name: counted.tiles[name] for name in (*applied, KEPT)}
    counts = {"images": len(rows), "quarantined": len(quarantined), COPIES: len(copies), **tiles}
    return counts, {
        "dropped": [picture for picture in pictures if picture is not None],
        "histograms": {name: _histogram(values) for name, values in counted.values.items()},
        "quarantined": [asdict(image) for image in quarantined],
    }


def _histogram(values: list[float]) -> list[list[float]]:
    """Begin, end and tiles of each bar; the outermost hundredths are in the bars at the ends."""
    low, high = np.quantile(values, [0.01, 0.99])
    counts, edges = np.histogram(np.clip(values, low, high), BARS)
    return [[round(float(x), 4) for x in bar] for bar in zip(edges, edges[1:], counts, strict=False)]


def _picture(config: CurateConfig, job: ImageJob, example: _Example) -> dict[str, Any] | None:
    """Write the picture of a dropped tile, or of a near-duplicate beside its original; None if it cannot be read."""
    ref, filesystem = ImageRef.from_row(example.row), job.listing.filesystem
    entry = {"step": example.step, "source": ref.source, "place": example.place, "value": example.value}
    try:
        image = _read(config, filesystem, ref)
        if example.original is not None:
            original = ImageRef.from_row(example.original)
            entry["original"] = original.source
            picture = webp(_beside(image, _read(config, filesystem, original)), 2 * SIDE)
        else:
            assert example.place is not None
            top, left = example.place
            picture = webp(image[top : top + config.tile, left : left + config.tile], SIDE)
    except RejectedImage as error:  # gone since
        log.warning("%s is not in the report: %s", ref.source, error.reason)
        return None
    name = f"{PICTURES}/{example.step}-{ref.image_id}.webp"
    job.storage.write(name, picture)
    return entry | {"file": name}


def _beside(*images: Pixels) -> Pixels:
    """Images side by side, each reduced to ``SIDE`` x ``SIDE`` with a grey border."""
    page = Image.new("RGB", (len(images) * SIDE, SIDE), "grey")
    for index, pixels in enumerate(images):
        image = Image.fromarray(pixels)
        image.thumbnail((SIDE - 4, SIDE))
        page.paste(image, (index * SIDE, 0))
    return np.asarray(page)


def _estimate(config: CurateConfig) -> str:
    """Images, tiles, bytes and time, from a few images."""
    listing = find_input_images(config)
    rows = listing.manifest.sort_by("image_id").slice(0, SAMPLED_IMAGES).to_pylist()
    tiles = kept = written = unreadable = 0
    begin = time.perf_counter()
    with Heartbeat("curating a few images"):
        for row in rows:
            try:
                image = _read(config, listing.filesystem, ImageRef.from_row(row))
            except RejectedImage:
                unreadable += 1
                continue
            for _, _, tile in _tiles(config, image):
                tiles += 1
                if judge(tile, config.filters.model_dump())[0] == KEPT:
                    kept, written = kept + 1, written + len(encode_png(tile))
    images = listing.manifest.num_rows
    share = images / len(rows)
    seconds = (time.perf_counter() - begin) * share
    lines = {
        "images": f"{images} in {listing.uri}",
        "tiles": f"about {tiles * share:.0f} of {config.tile} x {config.tile}, of which {kept * share:.0f} are kept",
        "bytes": f"about {size(written * share)}",
        "time": f"about {duration(seconds)} of one core, without the search for near-duplicates",
        "estimated from": f"{len(rows)} images, {unreadable} of which cannot be used",
    }
    return estimate_text(lines.items())
