"""The gallery: real tiles, condensed LR tiles and HR tiles of some images in one picture."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from idc_ray.config import CondenseConfig
from idc_ray.degradation import reading
from idc_ray.errors import RejectedImage
from idc_ray.images import ImageListing, ImageRef, decode_png, load_instance
from idc_ray.pipeline.inputs import only
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import check_shards
from idc_ray.store.layout import shard_of
from idc_ray.store.manifest import index_table
from idc_ray.store.shards import read_shard

log = logging.getLogger(__name__)

GALLERY = "gallery.png"
CELL = 144  # least side of a tile on the page, in pixels
GAP = 6  # between tiles
GROUP_GAP = 28  # between the groups
MARGIN = 28
CAPTION = 30  # height of a caption line
BACKGROUND, INK, FAINT = (250, 250, 248), (30, 30, 30), (120, 120, 120)
RESAMPLE = Image.Resampling


@dataclass(frozen=True)
class GalleryEntry:
    """One image of the gallery.

    Attributes:
        source: name of the image.
        real: LR crops of the image, RGB, p x p.
        lr: condensed LR tiles, p x p; empty if only HR is stored.
        hr: their HR tiles, scale p x scale p; empty if only LR is stored.
        loss_start: held-out loss of the initial tiles; None if nothing was optimised.
        loss_end: held-out loss of ``lr``.
    """

    source: str
    real: Sequence[Image.Image]
    lr: Sequence[Image.Image]
    hr: Sequence[Image.Image]
    loss_start: float | None = None
    loss_end: float | None = None


def draw_gallery(config: CondenseConfig, listing: ImageListing, store: StorageFolder) -> bytes | None:
    """PNG of some condensed images beside what they were made from; None if there is nothing to show."""
    table = index_table(store, ["image_id", "tiles"])
    ids = table.filter(pc.greater(table["tiles"], 0))["image_id"].to_pylist()
    if not ids or not config.gallery_images:
        return None
    step = max(1, len(ids) // config.gallery_images)
    chosen = set(ids[::step][: config.gallery_images])
    entries = []
    rows = _rows_of(store, chosen)
    for row in only(listing.manifest, chosen).to_pylist():
        try:
            entries.append(_entry(config, listing, row, rows[row["image_id"]]))
        except (RejectedImage, OSError) as error:
            log.warning("%s is not in the gallery: %s", row["source"], error)
    if not entries:
        return None
    buffer = io.BytesIO()
    gallery_png(entries).save(buffer, "PNG")
    return buffer.getvalue()


def _rows_of(store: StorageFolder, image_ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of some images, by image; one shard in memory at a time."""
    rows: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
    wanted = pa.array(sorted(image_ids), pa.string())
    for info in check_shards(store, full=False):
        if not any(shard_of(image_id, info.shard_count) == info.shard for image_id in image_ids):
            continue
        shard = read_shard(store, info.shard)
        for row in shard.filter(pc.is_in(shard["image_id"], wanted)).to_pylist():
            rows[row["image_id"]].append(row)
    return rows


def _entry(
    config: CondenseConfig, listing: ImageListing, manifest_row: dict[str, Any], rows: list[dict[str, Any]]
) -> GalleryEntry:
    instance = load_instance(
        ImageRef.from_row(manifest_row),
        listing.filesystem,
        **reading(config),
        keep_hr=False,
        lr_filesystem=listing.lr_filesystem,
    )
    if instance.source_sha256 != rows[0]["source_sha256"]:
        raise RejectedImage("changed", "the source image changed after it was condensed")
    size = config.tile_size
    corners = [(row["top"], row["left"]) for row in rows if row["top"] is not None] or [(0, 0)]
    return GalleryEntry(
        source=instance.source,
        real=[Image.fromarray(instance.lr[top : top + size, left : left + size]) for top, left in corners],
        lr=[Image.fromarray(decode_png(row["lr"]["bytes"])) for row in rows if row["lr"]],
        hr=[Image.fromarray(decode_png(row["hr"]["bytes"])) for row in rows if row["hr"]],
        loss_start=rows[0]["loss_start"],
        loss_end=rows[0]["loss_end"],
    )


def gallery_png(entries: Sequence[GalleryEntry], max_tiles: int = 3) -> Image.Image:
    """Draw the gallery with one row per entry, as PNG.

    All tiles are enlarged to one size by pixel repetition.

    Args:
        entries: at least one, with one tile size and scale.
        max_tiles: maximum number of tiles of each kind; the caption says if there are more.

    Raises:
        ValueError: there are no entries, or none has a tile.
    """
    entries = [entry for entry in entries if entry.lr or entry.hr]  # an image may get no tile
    if not entries:
        raise ValueError("a gallery needs at least one image with a tile")
    side = entries[0].real[0].width
    scale = entries[0].hr[0].width // side if entries[0].hr else 1
    # A multiple of both sizes: repetition by a whole factor shows no pixel wider than its neighbour.
    cell = side * scale * math.ceil(CELL / (side * scale))
    shown = min(max_tiles, max(len(group) for entry in entries for group in (entry.real, entry.lr, entry.hr)))
    kinds = [("real", "real LR crops"), ("lr", "condensed LR tiles"), ("hr", f"HR tiles (x{scale})")]
    kinds = [(kind, heading) for kind, heading in kinds if getattr(entries[0], kind)]
    headings = [heading for _, heading in kinds]
    group = max(shown * (cell + GAP) - GAP, *(round(_font(18).getlength(text)) for text in headings))
    width = 2 * MARGIN + len(kinds) * (group + GROUP_GAP) - GROUP_GAP
    row = CAPTION + cell + MARGIN
    page = Image.new("RGB", (width, 2 * MARGIN + CAPTION + len(entries) * row - MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(page)
    lefts = [MARGIN + i * (group + GROUP_GAP) for i in range(len(kinds))]
    for left, text in zip(lefts, headings, strict=True):
        draw.text((left, MARGIN - 6), text, INK, _font(18))
    for i, entry in enumerate(entries):
        top = MARGIN + CAPTION + i * row
        _draw_caption(draw, (MARGIN, top), entry, shown, width - 2 * MARGIN)
        for left, (kind, _) in zip(lefts, kinds, strict=True):
            _paste_tiles(page, (left, top + CAPTION), getattr(entry, kind)[:shown], cell)
    return page


def _paste_tiles(page: Image.Image, at: tuple[int, int], tiles: Sequence[Image.Image], cell: int) -> None:
    left, top = at
    for tile in tiles:
        page.paste(tile.convert("RGB").resize((cell, cell), RESAMPLE.NEAREST), (left, top))
        left += cell + GAP


def _draw_caption(draw: ImageDraw.ImageDraw, at: tuple[int, int], entry: GalleryEntry, shown: int, width: int) -> None:
    count = len(entry.lr or entry.hr)
    facts = "1 tile" if count == 1 else f"{count} tiles" + (f", {shown} shown" if count > shown else "")
    if entry.loss_start is not None and entry.loss_end is not None:
        facts += f", held-out loss {entry.loss_start:.3g} to {entry.loss_end:.3g}"
        if entry.loss_start > 0:
            facts += f" ({100 * (entry.loss_end / entry.loss_start - 1):+.0f} %)"
    left, top = at
    right = _font(15).getlength(facts)
    name = _shortened(entry.source, max(width - right - GROUP_GAP, width / 3))
    draw.text((left, top + 5), name, INK, _font(15))
    draw.text((left + _font(15).getlength(name) + 14, top + 5), facts, FAINT, _font(15))


def _shortened(name: str, width: float) -> str:
    """The end of a name that is too wide."""
    if _font(15).getlength(name) <= width:
        return name
    while name and _font(15).getlength("..." + name) > width:
        name = name[1:]
    return "..." + name


def _font(points: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(points)  # Pillow brings it along: the same picture on every machine
