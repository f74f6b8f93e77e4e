from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from skimage.data import astronaut

from idc_ray.config.curate import Filters
from idc_ray.curation.measures import MEASURES, judge

PHOTO: NDArray[np.uint8] = astronaut()[100:356, 150:406]


def value(name: str, image: NDArray[np.uint8]) -> float:
    return MEASURES[name][0](image, image @ np.array([0.299, 0.587, 0.114]))


def jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def blurred(image: NDArray[np.uint8], radius: float) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def test_noise_is_measured_in_grey_levels_even_in_texture() -> None:
    """Catches a measure of texture. Grey noise has the same strength in the luma; where it is clipped it is weaker."""
    image = PHOTO // 2 + 64
    for sigma in (0, 5, 20):
        noise = np.random.default_rng(0).normal(0, sigma, PHOTO.shape[:2])[..., None]
        assert value("noise", (image + noise).clip(0, 255).astype(np.uint8)) == pytest.approx(sigma, abs=1 + sigma / 10)


def test_jpeg_blocks_are_found_wherever_the_grid_begins() -> None:
    values = [value("blockiness", jpeg(PHOTO, quality)[3:, 5:]) for quality in (95, 50, 10)]
    assert values == sorted(values) and values[0] < 1.2 and values[2] > 2
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::8] = 255  # periodic in one direction, as fences are
    assert value("blockiness", stripes) < 1.5


def test_blur_flatness_complexity_and_exposure_order_images_as_eyes_do() -> None:
    for name in ("blur", "flatness", "complexity"):
        values = [value(name, image) for image in (PHOTO, blurred(PHOTO, 1), blurred(PHOTO, 4))]
        assert values == sorted(values, reverse=name != "blur")
    bright = (PHOTO.astype(int) + 120).clip(0, 255).astype(np.uint8)
    assert value("exposure", PHOTO) < 0.1 < value("exposure", bright)


def test_the_first_limit_that_is_not_met_is_named() -> None:
    """Catches limits on the wrong side, and a null that still filters."""
    limits = Filters().model_dump()
    verdict, values = judge(PHOTO, limits)
    assert verdict == "kept" and set(values) == limits.keys() - {"complexity"}
    noise = np.random.default_rng(0).normal(0, 25, PHOTO.shape)
    spoilt = {
        "exposure": (PHOTO.astype(int) + 120).clip(0, 255).astype(np.uint8),
        "flatness": np.full_like(PHOTO, 90),
        "blur": blurred(PHOTO, 2),
        "blockiness": jpeg(PHOTO, 15),
        "noise": (128 + (PHOTO / 4 - 32) + noise).clip(1, 254).astype(np.uint8),
    }
    for name, image in spoilt.items():
        verdict, values = judge(image, limits)
        assert verdict == list(values)[-1] == name
        assert judge(image, dict.fromkeys(limits)) == ("kept", {})
