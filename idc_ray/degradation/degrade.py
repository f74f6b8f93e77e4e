"""Drawing the parameters of a degradation, and applying them.

First all parameters are drawn, from (seed, image id) alone; with them an image is degraded without further randomness.
Images are 8-bit between steps. Results do not depend on threads, workers or the order of images. Between machines they
can differ where the versions of libjpeg-turbo, libwebp or numpy's random distributions differ, or, very rarely, where a
mathematical function of the C library differs in the last bit.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idc_ray.condensation.seeding import integer
from idc_ray.config import CondenseConfig
from idc_ray.config.degradation import NOTHING_LOST, Blur, Jpeg, Noise, Resize, Shuffle, Step, Webp
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.config.train import TrainConfig
from idc_ray.degradation.kernels import ROWS, blur, blur_kernel
from idc_ray.errors import BadRequest
from idc_ray.images.resize import downscale, resample

Drawn = dict[str, Any]
"""A step with all its parameters, in JSON types."""


@dataclass(frozen=True)
class Degrade:
    """A degradation with its seed.

    A function from an HR image, uint8 (scale h, scale w, 3), the scale and the image's id to its LR, uint8 (h, w, 3).

    Attributes:
        steps: the list, or ``bicubic``: MATLAB-style bicubic downscaling.
        seed: random seed.
    """

    steps: tuple[Step, ...] | Literal["bicubic"] = "bicubic"
    seed: int = 0

    @classmethod
    def of(cls, config: CondenseConfig | TrainConfig | EvaluateConfig) -> Degrade:
        """The degradation of a job."""
        return cls(config.degradation, config.seed)

    def drawn(self, image_id: str) -> list[Drawn]:
        """The parameters for an image; none for bicubic."""
        return [] if isinstance(self.steps, str) else draw(self.steps, _random(self.seed, image_id, "degradation"))

    def recorded(self, image_id: str) -> str | None:
        """The parameters as JSON, for records; None for bicubic."""
        return None if self.steps == "bicubic" else json.dumps(self.drawn(image_id))

    def __call__(self, hr: NDArray[np.uint8], scale: int, image_id: str) -> NDArray[np.uint8]:
        """The LR image.

        Raises:
            BadRequest: scale 1 and bicubic.
        """
        if not isinstance(self.steps, str):
            return apply(self.drawn(image_id), hr, scale)
        if scale == 1:
            raise BadRequest(NOTHING_LOST)
        return downscale(hr, scale)


BICUBIC = Degrade()


def reading(config: CondenseConfig) -> dict[str, Any]:
    """Arguments of :func:`idc_ray.images.load_instance`."""
    return {
        "scale": config.scale,
        "tile_size": config.tile_size,
        "max_pixels": config.source.max_pixels,
        "colors": config.color_profile,
        "degrade": Degrade.of(config),
    }


def draw(steps: Sequence[Step], random: np.random.Generator) -> list[Drawn]:
    """The steps that are applied to one image, in order."""
    drawn: list[Drawn] = []
    for step in steps:
        if random.random() >= step.p:
            continue
        if isinstance(step, Shuffle):
            for index in random.permutation(len(step.groups)):
                drawn += draw(step.groups[index], random)
        else:
            drawn.append({"kind": step.kind, **_parameters(step, random)})
    return drawn


def apply(drawn: Sequence[Drawn], hr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Degrade uint8 (scale h, scale w, 3) to (h, w, 3); what is not of that size in the end is resized by bicubic."""
    size = (hr.shape[0] // scale, hr.shape[1] // scale)
    image = hr
    for step in drawn:
        match step["kind"]:
            case "blur":
                image = blur(image, blur_kernel(step))
            case "resize":
                of = size if step["of"] == "output" else image.shape[:2]
                wanted = (max(1, math.floor(of[0] * step["factor"])), max(1, math.floor(of[1] * step["factor"])))
                image = resample(image, wanted, step["filter"], step["antialias"])
            case "noise":
                image = _noisy(image, step)
            case compression:
                image = _compressed(image, compression.upper(), step["quality"])
    return image if image.shape[:2] == size else resample(image, size)


def _parameters(step: Blur | Resize | Noise | Jpeg | Webp, random: np.random.Generator) -> Drawn:
    match step:
        case Blur():
            return _draw_kernel(step, random)
        case Resize():
            return {
                "factor": _factor(step, random), "of": step.of,
                "filter": step.filters[random.integers(len(step.filters))], "antialias": step.antialias,
            }  # fmt: skip
        case Noise():
            gaussian = random.random() < step.gaussian
            strength = {"sigma": _uniform(step.sigma, random)} if gaussian else {"scale": _uniform(step.scale, random)}
            return {**strength, "grey": bool(random.random() < step.grey), "seed": int(random.integers(2**53))}
        case Jpeg() | Webp():
            return {"quality": round(_uniform(step.quality, random))}


def _draw_kernel(step: Blur, random: np.random.Generator) -> Drawn:
    names, weights = list(step.kernels), np.array(list(step.kernels.values()))
    kernel = names[random.choice(len(names), p=weights / weights.sum())]
    size = int(random.integers(step.sizes[0] // 2, step.sizes[1] // 2 + 1)) * 2 + 1
    if kernel == "sinc":
        cutoff = (size >= 13 and step.large_cutoff) or step.cutoff
        return {"kernel": kernel, "size": size, "cutoff": _uniform(cutoff, random)}
    first, second = _uniform(step.sigma, random), _uniform(step.sigma, random)
    angle = _uniform((-math.pi, math.pi), random)
    isotropic = not kernel.endswith("aniso")
    drawn: Drawn = {"kernel": kernel, "size": size, "sigma": [first, first if isotropic else second]}
    drawn["angle"] = 0.0 if isotropic else angle
    if kernel.startswith(("generalized", "plateau")):
        drawn["beta"] = _beta(step.plateau_beta if kernel.startswith("plateau") else step.generalized_beta, random)
    return drawn


def _beta(values: tuple[float, float], random: np.random.Generator) -> float:
    low, high = values
    if not low <= 1 <= high:
        return _uniform(values, random)
    return _uniform((low, 1.0) if random.random() < 0.5 else (1.0, high), random)


def _factor(step: Resize, random: np.random.Generator) -> float:
    if step.weights is None:
        return _uniform(step.factor, random)
    weights = np.array(list(step.weights.values()))
    direction = list(step.weights)[random.choice(len(weights), p=weights / weights.sum())]
    low, high = step.factor
    return {"up": _uniform((1.0, high), random), "down": _uniform((low, 1.0), random), "keep": 1.0}[direction]


def _uniform(values: tuple[float, float], random: np.random.Generator) -> float:
    return round(float(random.uniform(*values)), 6)  # short in records, and what is recorded is what is applied


def _random(*key: object) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(integer(*key)))


def _noisy(image: NDArray[np.uint8], step: Drawn) -> NDArray[np.uint8]:
    random = _random(step["seed"])
    base = _grey(image) if step["grey"] else image
    levels = 2.0 ** math.ceil(math.log2(np.count_nonzero(np.bincount(base.ravel(), minlength=256))))
    out = np.empty_like(image)
    for top in range(0, len(image), ROWS):
        clean = base[top : top + ROWS].astype(np.float64)
        if "sigma" in step:
            noise = random.standard_normal(clean.shape) * step["sigma"]
        else:
            noise = (random.poisson(clean * levels / 255) * 255 / levels - clean) * step["scale"]
        noisy = np.floor(image[top : top + ROWS] + noise + 0.5)
        out[top : top + ROWS] = noisy.clip(0, 255)
    return out


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rounded luma (H, W, 1) of BT.601."""
    return ((image @ np.array([299, 587, 114]) + 500) // 1000).astype(np.uint8)[..., None]


def _compressed(image: NDArray[np.uint8], kind: str, quality: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    options = {"subsampling": "4:2:0"} if kind == "JPEG" else {}
    Image.fromarray(image).save(stream, kind, quality=quality, **options)
    return np.asarray(Image.open(stream).convert("RGB"))
