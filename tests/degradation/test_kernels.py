from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import correlate
from scipy.special import j1

from idc_ray.degradation.kernels import blur, blur_kernel

NOISE = np.random.default_rng(0).integers(0, 256, (300, 90, 3), np.uint8)  # more rows than are convolved at a time


def drawn(kernel: str, **changed: Any) -> dict[str, Any]:
    return {"kernel": kernel, "size": 21, "sigma": [2.0, 2.0], "angle": 0.0, **changed}


def test_sinc_is_the_formula_of_the_paper_with_scipys_bessel_function() -> None:
    """Catches an integral that has not converged at the largest kernel and cut-off."""
    y, x = np.mgrid[-31:32, -31:32]
    distance = np.hypot(x, y)
    with np.errstate(invalid="ignore"):
        expected = np.pi * j1(np.pi * distance) / (2 * np.pi * distance)
    expected[31, 31] = np.pi / 4
    kernel = blur_kernel({"kernel": "sinc", "size": 63, "cutoff": 1.0})
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=1e-12)


@pytest.mark.parametrize("kernel", ["iso", "generalized_iso", "plateau_iso"])
def test_kernels_are_what_their_names_say(kernel: str) -> None:
    """With one sigma all are symmetric; with beta 1 the generalised one is Gaussian, the plateau has fat tails."""
    made = blur_kernel(drawn(kernel, beta=1.0))
    np.testing.assert_allclose(made, made.T)
    ratio = made[10, 14] / made[10, 10]  # at two sigma
    assert ratio == pytest.approx(1 / 5 if kernel == "plateau_iso" else np.exp(-2))


def test_an_anisotropic_kernel_has_its_sigmas_along_its_axes() -> None:
    kernel = blur_kernel(drawn("aniso", size=41, sigma=[4.0, 1.5], angle=np.pi / 6))
    y, x = np.mgrid[-20:21, -20:21]
    covariance = [[(kernel * a * b).sum() for a in (x, y)] for b in (x, y)]
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(np.sqrt(values), [1.5, 4.0], rtol=0.01)
    assert np.arctan(vectors[1, 1] / vectors[0, 1]) == pytest.approx(np.pi / 6, abs=0.01)


@pytest.mark.parametrize("step", [drawn("aniso", sigma=[3.0, 0.7], angle=1.0),
                                  {"kernel": "sinc", "size": 7, "cutoff": 0.5}])  # fmt: skip
def test_blur_equals_scipys_correlation(step: dict[str, Any]) -> None:
    """Catches wrong borders, seams between the strips, and an error of the Fourier transform that changes a byte."""
    kernel = blur_kernel(step)
    rounded = np.rint(kernel * 2**20) / np.rint(kernel * 2**20).sum()
    expected = np.stack([correlate(NOISE[..., c].astype(float), rounded, mode="mirror") for c in range(3)], -1)
    # At an exact half scipy's sum may fall on either side.
    clear = np.abs(expected % 1 - 0.5) > 1e-6
    np.testing.assert_array_equal(blur(NOISE, kernel)[clear], np.floor(expected + 0.5).clip(0, 255)[clear])


def test_blur_keeps_flat_images_and_takes_small_ones() -> None:
    kernel = blur_kernel(drawn("iso"))
    for shape in [(1, 1, 3), (3, 7, 3), (257, 4, 3)]:
        flat = np.full(shape, 77, np.uint8)
        np.testing.assert_array_equal(blur(flat, kernel), flat)
