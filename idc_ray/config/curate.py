"""Configuration of the curate job."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from idc_ray.config.base import Section, result_digest, result_settings
from idc_ray.config.condense import Mlflow, Text
from idc_ray.config.images import COMMON, ImageJobConfig, ImageMethod

Limit = Annotated[float, Field(ge=0)] | None


class Filters(Section):
    """Limits that a tile has to meet, in the order in which they are applied; null: not applied."""

    exposure: Limit = 0.1
    """Largest share of pixels with a channel at 0 or 255."""
    flatness: Limit = 2.0
    """Smallest mean gradient of the luma, in grey levels a pixel."""
    complexity: Limit = None
    """Fewest bits a pixel of the luma as JPEG of quality 75."""
    blur: Limit = 0.6
    """Largest perceptual blur (Crete et al. 2007), from 0, sharp, to 1."""
    blockiness: Limit = 1.5
    """Largest step at the borders of 8 x 8 blocks relative to the steps within them; 1: no blocks."""
    noise: Limit = 6.0
    """Largest noise level of the luma in the smoothest tenth of the tile (Immerkaer 1996), in grey levels."""


class CurateMlflow(Mlflow):
    """MLflow tracking."""

    experiment: Text = "idc_ray_curate"
    """Name of the experiment."""


class CurateMethod(ImageMethod):
    """Settings that the tiles depend on, besides the images. All are part of the digest."""

    tile: Annotated[int, Field(ge=32)] = 512
    """Side of the tiles in pixels, at least 32. They are cut without overlap, the last ones flush with the border."""
    near_duplicates: Annotated[int, Field(ge=0, le=64)] | None = 6
    """Most bits, of 64, in which the perceptual hashes of two images differ that count as the same picture; the
    largest image is kept. null: all images are kept."""
    filters: Filters = Filters()


# The fields of the last base come first, in help and YAML.
class CurateConfig(CurateMethod, ImageJobConfig):
    """Settings of ``idc-ray curate``."""

    common: ClassVar[dict[str, str]] = {
        "input": "folder, glob, list, Parquet or archive of images",
        "output": "folder or s3:// or gs:// prefix",
        "tile": "side of the tiles in pixels",
        "near_duplicates": "bits by which hashes of like images differ; none: off",
        "filters.exposure": "largest share of clipped pixels",
        "filters.flatness": "smallest mean gradient",
        "filters.complexity": "fewest bits a pixel as JPEG",
        "filters.blur": "largest perceptual blur, 0 to 1",
        "filters.blockiness": "largest blockiness of JPEG; 1: none",
        "filters.noise": "largest noise level of the luma, grey levels",
        **COMMON,
    }

    report: bool = True
    """Write report.html; needs the extra report."""
    mlflow: CurateMlflow = CurateMlflow()

    def digest(self) -> str:
        """16 hex digits of the settings that the tiles depend on."""
        return result_digest(result_settings(self, CurateMethod))
