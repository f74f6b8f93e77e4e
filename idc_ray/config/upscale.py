"""Settings of the upscaling job."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from idc_ray.config.base import PathField, Section
from idc_ray.config.condense import Count, Text


class UpscaleConfig(Section):
    """Settings of ``idc-ray upscale``."""

    common: ClassVar[dict[str, str]] = {
        "model": "checkpoint file, 'bundled' or 'bicubic'",
        "input": "folder, glob, list, Parquet, archive, or one image",
        "output": "folder or URI; results keep the folders and names",
        "scale": "super-resolution factor; none: the checkpoint's",
        "format": "png, jpg or webp",
        "tile": "side of the tiles of large images; none: whole images",
        "tile_overlap": "pixels that neighbouring tiles share",
        "self_ensemble": "mean over the eight flips and rotations of the input",
        "device": "cpu, cuda, cuda:1, ...; auto: the GPU if there is one",
        "dry_run": "print images, sizes, bytes and time; start nothing",
        "strict": "exit with 3 if an image could not be upscaled",
        "overwrite": "replace other files in the output",
    }

    model: PathField[Text]
    """A checkpoint (of this package, or any that spandrel loads), or bundled, or bicubic."""
    input: PathField[Text]
    """Folder (searched recursively), glob, list file, Parquet, archive or one image; local or object store."""
    output: PathField[Text]
    """Folder or object-store prefix for the results, which keep the input's folders and names."""
    scale: Annotated[int, Field(ge=1)] | None = None
    """Upscaling factor; null: the checkpoint's, and 2 for bundled and bicubic."""
    format: Literal["png", "jpg", "webp"] = "png"
    """File format of the results, 8-bit RGB: png; jpg, of quality 95 without chroma subsampling; webp, lossless."""
    tile: Annotated[int, Field(ge=16)] | None = 256
    """Larger images go through the network in overlapping tiles of this side, LR pixels; null: whole."""
    tile_overlap: int = Field(32, ge=0)
    """LR pixels that neighbouring tiles share; half of them at each border are dropped."""
    self_ensemble: bool = False
    """Mean of the outputs for the eight flips and rotations of the input (EDSR, section 3.3); takes 8 times as long."""
    device: Text = "auto"
    """cpu, cuda, cuda:1, ...; auto: the GPU if there is one."""
    max_pixels: Count = 100_000_000
    """Pixels of the largest image that is decoded; larger ones are reported and left out."""
    dry_run: bool = False
    """Print images, sizes, bytes and a time estimate; start and write nothing."""
    strict: bool = False
    """Exit with 3 if an image could not be upscaled."""
    overwrite: bool = False
    """Replace results of other settings, or files that are no results, in the output."""
