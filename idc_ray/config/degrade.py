"""Configuration of the degrade job."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from idc_ray.config.base import result_digest, result_settings
from idc_ray.config.condense import Mlflow, Text
from idc_ray.config.degradation import NOTHING_LOST, Degradation
from idc_ray.config.images import COMMON, ImageJobConfig, ImageMethod


class DegradeMlflow(Mlflow):
    """MLflow tracking; off by default."""

    enabled: bool = False
    """Track the run in MLflow."""
    experiment: Text = "idc_ray_degrade"
    """Name of the experiment."""


class DegradeMethod(ImageMethod):
    """Settings that the LR images depend on. All are part of the digest."""

    degradation: Degradation = "bicubic"
    """What makes LR images: bicubic (MATLAB's), classic, realesrgan, noise15, noise25, noise50, a YAML file of steps,
    or the steps themselves (docs/degradation.md)."""
    scale: Literal[1, 2, 3, 4] = 2
    """Side of an HR image over that of its LR image."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Random seed; parameters are drawn by seed and image id."""


# The fields of the last base come first, in help and YAML.
class DegradeConfig(DegradeMethod, ImageJobConfig):
    """Settings of ``idc-ray degrade``."""

    common: ClassVar[dict[str, str]] = {
        "input": "folder, glob, list, Parquet or archive of HR images",
        "output": "folder or s3:// or gs:// prefix for LR/",
        "degradation": "bicubic, classic, realesrgan, FILE",
        "scale": "super-resolution factor",
        "seed": "random seed",
        **COMMON,
    }

    mlflow: DegradeMlflow = DegradeMlflow()

    @model_validator(mode="after")
    def _something_is_lost(self) -> Self:
        if self.scale == 1 and self.degradation == "bicubic":
            raise ValueError(NOTHING_LOST)
        return self

    def digest(self) -> str:
        """16 hex digits of the settings that the LR images depend on."""
        return result_digest(result_settings(self, DegradeMethod))
