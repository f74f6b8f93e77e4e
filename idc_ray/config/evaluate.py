"""Configuration of the evaluate job."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from idc_ray.config.base import OneOrSeveral, PathField, Section
from idc_ray.config.condense import Mlflow, Text
from idc_ray.config.degradation import Degradation


class EvaluateMlflow(Mlflow):
    """MLflow tracking; off by default."""

    enabled: bool = False
    """Track the scores."""
    experiment: Text = "idc_ray_evaluate"
    """Name of the experiment."""


class EvaluateConfig(Section):
    """Settings of ``idc-ray evaluate``."""

    common: ClassVar[dict[str, str]] = {
        "model": "checkpoint file, 'bundled' or 'bicubic'",
        "benchmarks": "one benchmark folder, or several: '[Set5, Urban100]'",
        "output": "folder or URI for metrics.json, metrics.csv and pictures",
        "scale": "super-resolution factor",
        "degradation": "of LR: bicubic, classic, realesrgan, FILE",
        "device": "cpu, cuda, cuda:1, ...; auto: the GPU if there is one",
        "tile": "side of the tiles for large images, LR pixels; none: whole images",
        "tile_overlap": "LR pixels that neighbouring tiles share",
        "self_ensemble": "mean over the eight flips and rotations of the input",
        "pictures": "write the outputs as PNG",
        "dry_run": "print sets, sizes and time; write nothing",
        "mlflow.enabled": "track the scores with MLflow",
    }

    model: PathField[Text]
    """A checkpoint of idc_ray, or any that spandrel loads; bundled; or bicubic."""
    benchmarks: PathField[OneOrSeveral[Text]] = Field(min_length=1)
    """Folder of sets, or one set: xS/HR and perhaps xS/LR, HR and LR, BasicSR's GTmod12 and
    LRbicxS, or DIV2K's NAME_HR and NAME_LR_bicubic/XS; or plain folders of HR images. One or several, "[A, B]"."""
    output: PathField[Text]
    """Folder or URI for metrics.json, metrics.csv and pictures; made if missing."""
    scale: int = Field(2, ge=1)
    """Upscaling factor; 1: restoration, for which PSNR is that of RGB without a crop."""
    degradation: Degradation = "bicubic"
    """What makes the inputs of ground truths, as for condense; with another than bicubic, LR files are not used."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed of the degradation."""
    device: Text = "auto"
    """cpu, cuda, cuda:1, ...; auto: the GPU if there is one."""
    tile: Annotated[int, Field(ge=16)] | None = None
    """Side of overlapping tiles that larger images are processed in, LR pixels; null: whole images."""
    tile_overlap: int = Field(16, ge=0)
    """Overlap of neighbouring tiles, in LR pixels; half of it is cropped at each border."""
    self_ensemble: bool = False
    """Mean of the outputs for the eight flips and rotations of the input (EDSR, section 3.3)."""
    pictures: bool = False
    """Write the outputs as PNG, SET/NAME.png."""
    dry_run: bool = False
    """Print sets, sizes and a time estimate; write nothing."""
    mlflow: EvaluateMlflow = EvaluateMlflow()
