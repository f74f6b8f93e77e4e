"""Configuration of the curate job."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from idc_ray.config.base import PathField, Section
from idc_ray.config.condense import Count, Text

__all__ = ["CurateConfig", "Filters"]

Limit = Annotated[float, Field(ge=0)] | None


class Filters(Section):
    """Limits that a tile has to meet, in the order in which they are applied; null: not applied."""

    exposure: Limit = 0.1
    """Largest share of pixels with a channel at 0 or 255."""
    flatness: Limit = 2.0
    """Smallest mean gradient of the luma, in grey levels a pixel."""
    blur: Limit = 0.6
    """Largest perceptual blur (Crete et al. 2007), from 0, sharp, to 1."""
    blockiness: Limit = 1.5
    """Largest step at the borders of 8 x 8 blocks relative to the steps within them; 1: no blocks."""
    noise: Limit = 6.0
    """Largest noise level of the luma in the smoothest tenth of the tile (Immerkaer 1996), in grey levels."""


class CurateConfig(Section):
    """Settings of ``idc-ray curate``."""

    common: ClassVar[dict[str, str]] = {
        "input": "folder, glob, list, Parquet or archive of images",
        "output": "folder or s3:// or gs:// prefix",
        "tile": "side of the tiles in pixels",
        "filters.exposure": "largest share of clipped pixels",
        "filters.flatness": "smallest mean gradient",
        "filters.blur": "largest perceptual blur, 0 to 1",
        "filters.blockiness": "largest blockiness of JPEG; 1: none",
        "filters.noise": "largest noise level of the luma, grey levels",
        "ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
    }

    input: PathField[Text]
    """Images: folder, glob, list file, Parquet or archive, local or remote."""
    output: PathField[Text]
    """Folder or object-store prefix for the tiles that pass, as PNG, and the report on the others."""
    tile: int = Field(512, ge=32)
    """Side of the tiles in pixels, at least 32. They are cut without overlap, the last ones flush with the border."""
    filters: Filters = Filters()
    color_profile: Literal["srgb", "keep"] = "srgb"
    """Embedded ICC profiles. srgb: images are converted to sRGB; keep: pixels as stored."""
    max_pixels: Count = 100_000_000
    """Largest image that is decoded, in pixels."""
    ray_address: Text | None = None
    """Ray cluster to join; null: RAY_ADDRESS, else a local cluster is started."""
