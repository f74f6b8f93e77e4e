from __future__ import annotations

import numpy as np
import pytest
import torch

from idc_ray.condensation.difficulty import Hardness, Weighting, bicubic_upscale, difficulty, gradient, hardness_map
from idc_ray.images import resize
from tests.condensation.conftest import as_tensor, literal_gradient, picture


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_upscale_is_the_packages_own_bicubic_up_to_its_two_roundings(scale: int) -> None:
    """Another kernel, phase or border than the one that made LR images would count as difficulty."""
    image = picture(13, 17) // 2 + 64  # nothing is clipped between the two passes
    image[:, -1], image[0] = 190, 64  # borders with contrast, where the rules differ
    smooth = bicubic_upscale(as_tensor(image)[None].float() / 255, scale)[0] * 255
    rounded = as_tensor(resize.upscale(image, scale)).float()
    # Half a grey level for the rows, carried through the columns (whose weights sum to 1.25 at most), half for those.
    assert (smooth - rounded).abs().max() < 1.2
    assert (smooth - rounded).abs().mean() < 0.4


def test_bicubic_upscale_of_a_constant_is_that_constant_everywhere() -> None:
    """At the border weights of repeated pixels must add up, not overwrite each other."""
    assert torch.allclose(bicubic_upscale(torch.full((2, 3, 5, 7), 0.3), 4), torch.tensor(0.3), atol=1e-6)


def test_what_bicubic_overshoots_beyond_black_and_white_is_clipped_as_in_a_picture() -> None:
    """A teacher's output is; unclipped, every black letter on white would count as difficult with a perfect teacher."""
    lr = torch.zeros(1, 3, 8, 8)
    lr[..., 4:] = 1
    upscaled = bicubic_upscale(lr, 2)
    assert (float(upscaled.min()), float(upscaled.max())) == (0, 1)


@pytest.mark.parametrize("scale", [2, 3])
def test_difficulty_equals_its_definition(scale: int) -> None:
    """Pixel by pixel: mean over channels and over the block of the LR pixel, in float64."""
    random = torch.Generator().manual_seed(0)
    lr = torch.rand(2, 3, 6, 5, generator=random)
    upscaled = torch.rand(2, 3, 6 * scale, 5 * scale, generator=random)
    error = (upscaled - bicubic_upscale(lr, scale)).abs().double().numpy()
    expected = np.zeros((2, 6, 5))
    for b, top, left in np.ndindex(2, 6, 5):
        block = error[b, :, scale * top : scale * (top + 1), scale * left : scale * (left + 1)]
        expected[b, top, left] = block.mean()
    assert np.allclose(difficulty(lr, upscaled, scale).numpy(), expected, atol=1e-6)


def test_what_bicubic_does_as_well_is_not_difficult() -> None:
    lr = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    assert float(difficulty(lr, bicubic_upscale(lr, 2), 2).max()) == 0


def test_gradient_equals_its_definition_and_repeats_borders() -> None:
    image = as_tensor(picture(9, 12)).float() / 255
    maps = gradient(torch.stack([image, image.flip(2)]))
    assert np.allclose(maps[0, 1:-1, 1:-1].numpy(), literal_gradient(image.numpy()), atol=1e-6)
    assert torch.allclose(maps[1], maps[0].flip(1), atol=1e-6)
    repeated = torch.nn.functional.pad(image[None], (1,) * 4, mode="replicate")[0]
    assert np.allclose(maps[0].numpy(), literal_gradient(repeated.numpy()), atol=1e-6)


def test_a_ramp_of_one_grey_level_a_pixel_has_that_gradient() -> None:
    """The unit: a factor of 8 or of 255 would go unseen, as weights are relative."""
    ramp = torch.arange(20.0).expand(1, 3, 10, 20)
    assert torch.allclose(gradient(ramp)[..., 1:-1], torch.tensor(1.0), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"), [("difficulty", [4.0, 0.0]), ("gradient", [1.0, 1.0]), ("both", [2.0, 0.0])]
)
def test_hardness_is_difficulty_or_gradient_or_their_geometric_mean(kind: Hardness, expected: list[float]) -> None:
    ramp = torch.arange(4.0).expand(1, 3, 3, 4)
    difficulties = torch.tensor([[4.0, 0.0]]).repeat(3, 1)[None]
    hard = hardness_map(kind, torch.nn.functional.pad(difficulties, (1, 1)), ramp)
    assert torch.allclose(hard[0, :, 1:-1], torch.tensor(expected), atol=1e-6)


def test_weighting_equals_its_definition() -> None:
    """min((d / mean + floor)^gamma, ceiling), the ceiling being the weight at that percentile."""
    values = torch.rand(1000, generator=torch.Generator().manual_seed(2), dtype=torch.float64) ** 3
    weighting = Weighting.fit(values, 1.5, 0.01, 90)
    raw = (values.numpy() / values.numpy().mean() + 0.01) ** 1.5
    ceiling = np.sort(raw)[900]
    assert weighting.ceiling == pytest.approx(ceiling)
    assert np.allclose(weighting(values).numpy(), np.minimum(raw, ceiling))
    assert int((weighting(values) == weighting.ceiling).sum()) == 100


def test_clipping_at_100_percent_clips_nothing_of_the_image() -> None:
    """The rank of the 100th percentile lies one behind the last value."""
    values = torch.arange(1.0, 11)
    weighting = Weighting.fit(values, 1, 0.01, 100)
    assert weighting(values).diff().min() > 0


def test_positions_of_tiles_weigh_the_same_or_as_in_the_image() -> None:
    values = torch.rand(50)
    weighting = Weighting.fit(values, 2, 0.01, 99)
    assert weighting.of_tiles("difficulty") is weighting
    assert torch.equal(weighting.of_tiles("uniform")(values), torch.ones(50))


def test_gamma_0_is_uniform() -> None:
    """The paper's method has no weights; it must not pay for measuring difficulty either."""
    values = torch.rand(50, generator=torch.Generator().manual_seed(3))
    weighting = Weighting.fit(values, 0, 0.01, 99)
    assert weighting.uniform
    assert torch.equal(weighting(values), torch.ones(50))
    assert not Weighting.fit(values, 0.5, 0.01, 99).uniform


@pytest.mark.parametrize("gamma", [0.0, 1.0, 3.0])
def test_flat_images_have_finite_positive_weights(gamma: float) -> None:
    """Their mean difficulty is 0, and 0 / 0 would make every target NaN."""
    weighting = Weighting.fit(torch.zeros(20), gamma, 0.01, 99)
    for values in (torch.zeros(5), torch.rand(5)):  # the tiles of a flat image may become less flat
        assert bool((weighting(values) > 0).all() and weighting(values).isfinite().all())
