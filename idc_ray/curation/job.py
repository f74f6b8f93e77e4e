"""The curate job: tiles of images that pass the filters, counts, and a picture of those that do not."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from typing import Any

import pyarrow as pa
import ray
from PIL import Image, ImageDraw

from idc_ray.config.base import result_digest
from idc_ray.config.curate import CurateConfig
from idc_ray.curation.measures import MEASURES, first_fault
from idc_ray.errors import BadRequest, IdcError, RejectedImage
from idc_ray.images import ImageListing, ImageRef, crop_starts, encode_png, find_images, load_instance, output_inside
from idc_ray.lifecycle import locked_output, ray_cluster
from idc_ray.pipeline.cluster import data_settings, join
from idc_ray.pipeline.progress import Heartbeat, Progress
from idc_ray.store.filesystem import StorageFolder, resolve

__all__ = ["run_curate"]

log = logging.getLogger(__name__)

RECORD, SHEET = "curation.json", "dropped.png"

#: Dropped tiles that the contact sheet shows of each filter, and their side in pixels.
SHOWN, SIDE = 10, 128

FIX = "delete that file; its image is curated again"


def run_curate(config: CurateConfig) -> int:
    """Curate; a repeated call continues with the images that are missing.

    Writes ``tiles/IMAGE-ID_TOP_LEFT.png``, ``images/IMAGE-ID.json`` with the verdict on each tile, and at the end
    ``curation.json`` with settings and counts, and ``dropped.png``.

    Returns:
        The exit code: 0.

    Raises:
        BadRequest: no images, or an output of other settings.
        IdcError: a tile could not be written.
    """
    print(config.to_yaml(defaults=False), flush=True)
    storage = resolve(config.output)
    with Heartbeat("listing the images"):
        listing = find_images(config.input, without=output_inside(config.input, config.output))
    settings = config.model_dump(mode="json", exclude={"input", "output", "ray_address", "max_pixels"})
    record = {"digest": result_digest(settings), "settings": settings}
    with locked_output(storage):
        found = storage.read_json(RECORD, "give another --output")
        if found is not None and found.get("digest") != record["digest"]:
            raise BadRequest(f"{storage.uri} holds tiles of other settings; give another --output")
        storage.write_json(RECORD, record)
        _curate(config, listing, storage)
        verdicts = _verdicts(listing, storage)
        counts = Counter(verdict for _, _, verdict, _ in verdicts)
        stages = {name: counts.pop(name, 0) for name in ("kept", *MEASURES)}
        record |= {
            "images": listing.manifest.num_rows,
            "tiles": stages,
            "images_left_out": dict(sorted(counts.items())),
        }
        storage.write(SHEET, _contact_sheet(config, listing, verdicts))
        storage.write_json(RECORD, record)
    width = max(map(len, [*stages, *counts]))
    for name, count in [*stages.items(), *sorted(counts.items())]:
        print(f"{name:{width}}  {count:,} {'images left out' if name in counts else 'tiles'}")
    print(f"tiles in {storage.shown('tiles')}, dropped ones in {storage.shown(SHEET)}")
    return 0


def _curate(config: CurateConfig, listing: ImageListing, storage: StorageFolder) -> None:
    done = set(storage.files("images"))
    rows = [row for row in listing.manifest.to_pylist() if f"{row['image_id']}.json" not in done]
    progress = Progress(listing.manifest.num_rows, listing.manifest.num_rows - len(rows))
    if not rows:
        return
    manifest = pa.Table.from_pylist(rows, schema=listing.manifest.schema)
    blocks = [manifest.slice(begin, 1 + len(rows) // 4000) for begin in range(0, len(rows), 1 + len(rows) // 4000)]
    with ray_cluster(lambda: join(config.ray_address)), data_settings(), progress.ticking():
        statuses = ray.data.from_blocks(blocks).map(_CurateImage(config, listing, storage))
        for status in statuses.iter_rows():
            if status["fatal"]:
                raise IdcError(status["fatal"])
            progress.update({"outcome": "done"})


class _CurateImage:
    """Curates one image; a row function for Ray Data, usable without it."""

    def __init__(self, config: CurateConfig, listing: ImageListing, storage: StorageFolder) -> None:
        self.config, self.filesystem, self.storage = config, listing.filesystem, storage

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        ref = ImageRef.from_row(row)
        try:
            tiles = self._tiles(ref)
        except RejectedImage as error:
            tiles = [[0, 0, error.code, 0.0]]
        except (IdcError, OSError) as error:  # as a row: Ray Data would drop the type and message
            return {"fatal": str(error)}
        self.storage.write_json(f"images/{ref.image_id}.json", {"source": ref.source, "tiles": tiles})
        return {"fatal": ""}

    def _tiles(self, ref: ImageRef) -> list[list[Any]]:
        size, image = self.config.tile, _read(self.config, self.filesystem, ref)
        tiles = []
        for top in crop_starts(image.shape[0], size, size):
            for left in crop_starts(image.shape[1], size, size):
                tile = image[top : top + size, left : left + size]
                fault = first_fault(tile, self.config.filters.model_dump())
                if fault is None:
                    self.storage.write(f"tiles/{ref.image_id}_{top:05d}_{left:05d}.png", encode_png(tile))
                tiles.append([top, left, *(fault or ("kept", 0.0))])
        return tiles


def _read(config: CurateConfig, filesystem: Any, ref: ImageRef) -> Any:
    image = load_instance(
        ref, filesystem, scale=1, tile_size=config.tile, max_pixels=config.max_pixels, keep_hr=False,
        degrade=lambda hr, scale, _: hr, colors=config.color_profile,
    )  # fmt: skip
    return image.lr


def _verdicts(listing: ImageListing, storage: StorageFolder) -> list[tuple[ImageRef, tuple[int, int], str, float]]:
    """Of every tile its image, place, verdict and the value that it was dropped for."""
    found = []
    for row in listing.manifest.to_pylist():
        ref = ImageRef.from_row(row)
        record = storage.read_json(f"images/{ref.image_id}.json", FIX) or {"tiles": []}
        found += [(ref, (top, left), verdict, value) for top, left, verdict, value in record["tiles"]]
    return found


def _contact_sheet(
    config: CurateConfig, listing: ImageListing, verdicts: list[tuple[ImageRef, tuple[int, int], str, float]]
) -> bytes:
    """Some dropped tiles of each filter, chosen by a hash of image and place."""
    page = Image.new("RGB", (SHOWN * (SIDE + 4), len(MEASURES) * (SIDE + 36)), "white")
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(MEASURES):
        dropped = [each for each in verdicts if each[2] == name]
        draw.text((4, row * (SIDE + 36) + 2), f"{name}: {len(dropped):,} tiles dropped", "black")
        dropped.sort(key=lambda each: hashlib.sha256(f"{each[0].image_id} {each[1]}".encode()).digest())
        for column, (ref, (top, left), _, value) in enumerate(dropped[:SHOWN]):
            try:
                tile = _read(config, listing.filesystem, ref)[top : top + config.tile, left : left + config.tile]
            except RejectedImage as error:  # gone since
                log.warning("%s is not on the contact sheet: %s", ref.source, error.reason)
                continue
            at = (column * (SIDE + 4), row * (SIDE + 36) + 18)
            page.paste(Image.fromarray(tile).resize((SIDE, SIDE), Image.Resampling.LANCZOS), at)
            draw.text((at[0], at[1] + SIDE + 2), f"{value:.3g}", "black")
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()
