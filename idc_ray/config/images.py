"""Settings that jobs on single images have in common."""

from __future__ import annotations

from typing import Literal

from idc_ray.config.base import PathField, Section
from idc_ray.config.condense import Count, Mlflow, Text

#: The same for ``common``.
COMMON = {
    "ray_address": "Ray cluster to join; none: RAY_ADDRESS, else a local one",
    "mlflow.enabled": "MLflow tracking; off: --no-mlflow.enabled",
    "dry_run": "estimate work, bytes and time; start nothing",
    "strict": "exit with code 3 if an image was quarantined",
    "retry_quarantined": "try quarantined images again",
}


class ImageFiles(Section):
    """Input and output."""

    input: PathField[Text]
    """Images: folder, glob, list file, Parquet or archive, local or remote."""
    output: PathField[Text]
    """Folder or object-store prefix for the images that are made."""


class ImageMethod(Section):
    """Settings that results depend on."""

    color_profile: Literal["srgb", "keep"] = "srgb"
    """Embedded ICC profiles. srgb: images are converted to sRGB; keep: pixels as stored."""


class ImageJobConfig(ImageMethod, ImageFiles):
    """Base of the configurations."""

    max_pixels: Count = 100_000_000
    """Largest image that is decoded, in pixels; larger ones are quarantined."""
    ray_address: Text | None = None
    """Ray cluster to join; null: RAY_ADDRESS, else a local cluster is started."""
    dry_run: bool = False
    """Print the amount of work, bytes and a time estimate; start nothing."""
    strict: bool = False
    """Exit with code 3 if an image was quarantined."""
    retry_quarantined: bool = False
    """Retry quarantined images."""
    mlflow: Mlflow = Mlflow()
