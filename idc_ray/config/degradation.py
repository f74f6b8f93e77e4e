"""Degradations: typed lists of steps that make an LR image from an HR image.

A degradation is ``bicubic``, the name of a packaged list, a YAML file, or the list itself. Settings hold the list: run
records are complete, and digests do not depend on paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from idc_ray.config.base import Section
from idc_ray.regular_files import open_regular

PRESETS = Path(__file__).parents[1] / "degradation" / "presets"

NOTHING_LOST = (
    "scale is 1 and degradation bicubic, so LR images would equal HR images; give --degradation noise25, realesrgan, "
    "FILE, or LR images"
)

Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Filter = Literal["area", "bilinear", "bicubic", "lanczos"]


def _as_range(value: object) -> object:
    return (value, value) if isinstance(value, int | float) else value


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the range {list(value)} falls; expected [lowest, highest]")
    return value


def _possible(weights: dict[str, float]) -> dict[str, float]:
    if sum(weights.values()) == 0:
        raise ValueError("all weights are 0; expected one above 0")
    return weights


#: A number, or [lowest, highest] of a uniform distribution.
Range = Annotated[tuple[Weight, Weight], BeforeValidator(_as_range), AfterValidator(_rising)]
Quality = Annotated[tuple[Percent, Percent], BeforeValidator(_as_range), AfterValidator(_rising)]
Kernel = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc"]


class _Step(Section):
    """Base class of all steps."""

    p: Probability = 1.0
    """Probability that the step is applied to an image."""


class Blur(_Step):
    """Convolution with a random kernel; border pixels are reflected."""

    kind: Literal["blur"]
    kernels: Annotated[dict[Kernel, Weight], AfterValidator(_possible)] = Field({"iso": 1.0})
    """Types and their weights: Gaussian, generalised Gaussian exp(-q^beta / 2) and plateau 1 / (1 + q^beta), with one
    sigma or with two and a rotation; and the low-pass filter sinc."""
    sizes: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(le=63)]] = (7, 21)
    """Least and greatest side of a kernel in pixels, both odd; all odd sides are equally frequent."""
    sigma: Range = (0.2, 3.0)
    """Standard deviation in pixels."""
    generalized_beta: Range = (0.5, 4.0)
    """Exponent of generalised kernels; half of the draws are below 1 if the range has 1 inside."""
    plateau_beta: Range = (1.0, 2.0)
    """Exponent of plateau kernels; half of the draws are below 1 if the range has 1 inside."""
    cutoff: Range = (1 / 3, 1.0)
    """Cut-off frequency of sinc, in units of the highest, pi."""
    large_cutoff: Range | None = None
    """Cut-off frequency of sinc for sides of 13 and more; null: as cutoff."""

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.sizes[0] % 2 == 0 or self.sizes[1] % 2 == 0 or self.sizes[0] > self.sizes[1]:
            raise ValueError(f"sizes is {list(self.sizes)}; expected two odd numbers, the smaller one first")
        if self.sigma[0] == 0:
            raise ValueError("sigma begins at 0; expected above 0, such as 0.1")
        return self


class Resize(_Step):
    """Resizing by a random factor."""

    kind: Literal["resize"]
    factor: Range = (1.0, 1.0)
    """Factor."""
    weights: Annotated[dict[Literal["up", "down", "keep"], Weight], AfterValidator(_possible)] | None = None
    """Weights of factors uniform in [1, highest], uniform in [lowest, 1], and 1; null: uniform in the whole range."""
    of: Literal["image", "output"] = "image"
    """Size that the factor refers to: that of the image so far, or that of the LR image."""
    filters: tuple[Filter, ...] = Field(("bicubic",), min_length=1)
    """Filters, equally frequent."""
    antialias: bool = True
    """Stretch filters when shrinking; area always is."""


class Noise(_Step):
    """Additive noise."""

    kind: Literal["noise"]
    gaussian: Probability = 1.0
    """Probability of Gaussian noise; else Poisson noise."""
    sigma: Range = (1.0, 30.0)
    """Standard deviation of Gaussian noise in grey levels, of 255."""
    scale: Range = (0.05, 3.0)
    """Factor of Poisson noise, whose variance is the intensity over 2^ceil(log2(number of distinct intensities))."""
    grey: Probability = 0.0
    """Probability that all channels have the same noise."""


class Jpeg(_Step):
    """JPEG compression with 4:2:0 chroma subsampling."""

    kind: Literal["jpeg"]
    quality: Quality = (30.0, 95.0)
    """Quality of libjpeg, rounded; 1 to 100."""


class Webp(_Step):
    """Lossy WebP compression."""

    kind: Literal["webp"]
    quality: Quality = (30.0, 95.0)
    """Quality of libwebp, rounded; 0 to 100."""


def _kind(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return kind if isinstance(kind, str) else None  # a message would show all that aliases of YAML stand for


_Plain = (
    Annotated[Blur, Tag("blur")]
    | Annotated[Resize, Tag("resize")]
    | Annotated[Noise, Tag("noise")]
    | Annotated[Jpeg, Tag("jpeg")]
    | Annotated[Webp, Tag("webp")]
)


class Shuffle(_Step):
    """Groups of steps in random order."""

    kind: Literal["shuffle"]
    groups: tuple[tuple[Annotated[_Plain, Discriminator(_kind)], ...], ...] = Field(min_length=2)
    """Lists of steps; the order within a list stays."""


Step = Annotated[_Plain | Annotated[Shuffle, Tag("shuffle")], Discriminator(_kind)]
_STEPS: TypeAdapter[tuple[Step, ...]] = TypeAdapter(tuple[Step, ...])


def _resolved(value: object) -> object:
    """The list of a name, a file or inline YAML."""
    if value == "bicubic":
        return value
    origin = "degradation"
    if isinstance(value, str):
        inline = value.lstrip().startswith("[")
        path = PRESETS / f"{value}.yaml" if value in _preset_names() else Path(value)
        origin = origin if inline else str(path)
        try:
            value = yaml.safe_load(value if inline else _text(path))
        except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
            known = ", ".join(["bicubic", *_preset_names()])
            raise ValueError(f"degradation {origin} cannot be read: {error}; expected {known} or a YAML file") from None
    try:
        return _STEPS.validate_python(value)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ValueError(f"{origin} is no list of steps: " + "; ".join(faults)) from None


def _text(path: Path) -> str:
    with open_regular(str(path)) as file:
        return file.read().decode()


def _preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


Degradation = Annotated[Literal["bicubic"] | tuple[Step, ...], BeforeValidator(_resolved)]
