from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from idc_ray.evaluation.metrics import border, mean_psnr, psnr, psnr_y, rgb_to_y, ssim_y

Image = NDArray[np.uint8]


def pair(height: int, width: int, noise: int = 12) -> tuple[Image, Image]:
    """A smooth picture and a noisy copy."""
    rng = np.random.default_rng(height * width)
    rows, columns = np.mgrid[:height, :width]
    hr = 128 + 90 * np.sin(rows / 5)[..., None] * np.cos(columns[..., None] / np.array([3, 5, 9]))
    sr = hr + rng.normal(0, noise, hr.shape)
    return sr.clip(0, 255).astype(np.uint8), hr.astype(np.uint8)


def test_y_of_known_colours() -> None:
    """BT.601, limited range: catches full range, swapped channels and rounding."""
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 0, 0]]], dtype=np.uint8)
    expected = [16, 235, 81.481, 144.553, 40.966, 16 + 65.481 / 255]
    np.testing.assert_allclose(rgb_to_y(colours)[0], expected, atol=1e-9)


@pytest.mark.parametrize("crop", [0, 2, 4])
def test_psnr_is_scikit_images_on_the_cropped_y(crop: int) -> None:
    sr, hr = pair(40, 33)
    inside = np.s_[crop : 40 - crop, crop : 33 - crop]
    expected = peak_signal_noise_ratio(rgb_to_y(hr)[inside], rgb_to_y(sr)[inside], data_range=255)
    assert psnr_y(sr, hr, crop) == pytest.approx(expected, abs=1e-9)


def test_restoration_is_scored_on_whole_rgb_images() -> None:
    """Catches the luma of super-resolution, which hides coloured noise, and another rule for the other scales."""
    sr, hr = pair(40, 33)
    assert psnr(sr, hr, 1) == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-9)
    assert [psnr(sr, hr, scale) for scale in (2, 4)] == [psnr_y(sr, hr, scale) for scale in (2, 4)]
    assert [border(scale) for scale in (1, 2, 3)] == [0, 2, 3]
    with pytest.raises(ValueError, match="shape"):
        psnr(sr[:-1], hr, 1)


@pytest.mark.parametrize(("height", "width", "crop"), [(40, 33, 0), (64, 50, 2), (19, 30, 4), (11, 11, 0), (13, 15, 1)])
def test_ssim_is_scikit_images_on_the_cropped_y(height: int, width: int, crop: int) -> None:
    """Down to one window: catches another window, sigma or border rule; at 11 x 11 one position is left."""
    sr, hr = pair(height, width)
    inside = np.s_[crop : height - crop, crop : width - crop]
    expected = structural_similarity(
        rgb_to_y(sr)[inside],
        rgb_to_y(hr)[inside],
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
    )
    assert ssim_y(sr, hr, crop) == pytest.approx(expected, abs=1e-6)
    assert ssim_y(sr, hr, crop) < 0.99


def test_equal_images() -> None:
    _, hr = pair(20, 24)
    assert psnr_y(hr, hr, 2) == math.inf
    assert ssim_y(hr, hr, 2) == pytest.approx(1)


def test_an_image_that_comes_out_exactly_is_left_out_of_the_mean() -> None:
    """Catches an infinite score, which no later checkpoint can beat, for a picture of one colour."""
    assert mean_psnr([math.inf, 30.0, 32.0]) == 31.0
    assert mean_psnr([math.inf]) == math.inf


def test_the_order_of_the_two_does_not_matter() -> None:
    sr, hr = pair(20, 24)
    assert psnr_y(sr, hr, 2) == psnr_y(hr, sr, 2)
    assert ssim_y(sr, hr, 2) == ssim_y(hr, sr, 2)


def test_what_is_cropped_does_not_count() -> None:
    sr, hr = pair(24, 30)
    spoilt = sr.copy()
    spoilt[:2], spoilt[-2:], spoilt[:, :2], spoilt[:, -2:] = 0, 255, 0, 255
    assert psnr_y(spoilt, hr, 2) == psnr_y(sr, hr, 2) != psnr_y(spoilt, hr, 1)
    assert ssim_y(spoilt, hr, 2) == ssim_y(sr, hr, 2) != ssim_y(spoilt, hr, 1)


def test_one_grey_level_everywhere_is_a_known_number() -> None:
    """Y moves by 219/255 of a level: catches eight-bit arithmetic that wraps around."""
    hr = np.full((16, 16, 3), 200, dtype=np.uint8)
    assert psnr_y(hr - 1, hr, 2) == pytest.approx(20 * math.log10(255 / (219 / 255)), abs=1e-9)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y])
def test_what_cannot_be_compared_is_refused(metric: object) -> None:
    sr, hr = pair(20, 24)
    assert callable(metric)
    with pytest.raises(ValueError, match="mod-crop"):
        metric(sr[:-1], hr, 2)
    with pytest.raises(ValueError, match="after a crop of 10"):
        metric(sr, hr, 10)
    with pytest.raises(ValueError, match="expected uint8"):
        metric(sr.astype(np.float32), hr, 2)
    with pytest.raises(ValueError, match="crop is -1"):
        metric(sr, hr, -1)
