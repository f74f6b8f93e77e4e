from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from idc_ray.condensation import starts
from idc_ray.condensation.rlff import FrequencyBank
from idc_ray.condensation.seeding import generator
from idc_ray.condensation.targets import RealImage
from idc_ray.condensation.teacher_features import FeatureReader
from tests.condensation.conftest import as_tensor, measured, picture

ROUGH = 70 // 2  # picture() is rough right of this column


def _roughness(image: Tensor) -> Tensor:
    """A stand-in for the difficulty map: what a picture differs from its left neighbour, (H, W)."""
    return image.float().diff(dim=2, prepend=image[..., :1].float()).abs().mean(0)


@pytest.fixture(scope="module")
def real(reader: FeatureReader, bank: FrequencyBank) -> RealImage:
    return measured(reader, bank, as_tensor(picture()), torch.zeros(52, 70), 0)


def test_hardest_picks_the_rough_half_and_no_two_overlap() -> None:
    """Sorted the wrong way round it would pick the sky."""
    hardness = _roughness(as_tensor(picture()))
    positions = starts.hardest_windows(hardness, 16, 3)
    assert bool((positions[:, 1] >= ROUGH - 1).all())
    means = [float(hardness[t : t + 16, left : left + 16].mean()) for t, left in positions.tolist()]
    assert means[0] == max(means)
    down, across = ((positions[:, None] - positions[None]).abs() < 16).unbind(-1)
    assert torch.equal(down & across, torch.eye(3, dtype=torch.bool))


def test_crops_are_the_pixels_at_their_positions() -> None:
    """Positions are (top, left); swapped, the gallery and real labels would show another place."""
    image = picture()
    tiles, corners = starts.crop_start(as_tensor(image), torch.tensor([[3, 40], [36, 0]]), 16)
    assert corners == [(3, 40), (36, 0)]
    assert np.array_equal(tiles[0].permute(1, 2, 0).numpy(), image[3:19, 40:56])
    assert np.array_equal(tiles[1].permute(1, 2, 0).numpy(), image[36:52, 0:16])


def test_random_windows_follow_the_generator_alone() -> None:
    one, again, other = (starts.random_windows(52, 70, 16, 5, generator(seed, "x")) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert bool((one >= 0).all() and (one[:, 0] <= 36).all() and (one[:, 1] <= 54).all())


@pytest.mark.parametrize("size", [16, 17])
def test_packed_tiles_hold_four_hard_crops_and_no_gap(size: int) -> None:
    """An odd side has quarters of two sizes: a row or column left out would be uninitialised memory."""
    image = as_tensor(picture())
    hardness = _roughness(image)
    first, corners = starts.packed_start(image, hardness, size, 3, 0)
    assert first.shape == (3, 3, size, size) and first.dtype == torch.uint8
    assert corners == [None] * 3
    near, far = size // 2, size - size // 2
    crops = starts.hardest_windows(hardness, far, 12).tolist()
    for tile in range(3):
        for quarter, (top, left) in enumerate([(0, 0), (0, near), (near, 0), (near, near)]):
            y, x = crops[3 * quarter + tile]  # the three hardest go to three different tiles
            height, width = near if top == 0 else far, near if left == 0 else far
            expected = image[:, y : y + height, x : x + width]
            assert torch.equal(first[tile, :, top : top + height, left : left + width], expected)


def test_packed_start_of_an_image_one_tile_large() -> None:
    """Four quarters of 9 pixels do not fit side by side into 17: they must overlap rather than be missing."""
    image = as_tensor(picture(17, 17))
    tiles, _ = starts.packed_start(image, _roughness(image), 17, 1, 4)
    assert tiles.shape == (1, 3, 17, 17)


def test_noise_has_the_images_statistics_and_is_a_function_of_its_key() -> None:
    image = torch.stack([torch.full((60, 70), 60), torch.full((60, 70), 128), torch.full((60, 70), 190)])
    image = (image + 12 * torch.randn(3, 60, 70, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    one, again, other = (starts.noise_start(image, 24, 8, generator(seed, "x"))[0] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    tiles, pixels = one.float(), image.float()
    assert torch.allclose(tiles.mean((0, 2, 3)), pixels.mean((1, 2)), atol=1)
    assert torch.allclose(tiles.std((0, 2, 3)), pixels.std((1, 2)), atol=1)


def test_noise_of_a_flat_image_is_flat() -> None:
    tiles, corners = starts.noise_start(torch.full((3, 20, 20), 7, dtype=torch.uint8), 16, 2, generator(0))
    assert bool((tiles == 7).all())
    assert corners == [None, None]


def test_medoids_are_distinct_crops_even_of_an_image_of_equal_crops(
    reader: FeatureReader, bank: FrequencyBank, real: RealImage
) -> None:
    """The nearest crop of two groups can be the same one; twice the same tile is a tile wasted."""
    flat = torch.full((3, 52, 70), 90, dtype=torch.uint8)
    equal = measured(reader, bank, flat, torch.zeros(52, 70), 0)
    for image, real_side, count in (
        (as_tensor(picture()), real, 20),
        (as_tensor(picture()), real, 7),
        (flat, equal, 9),
    ):
        tiles, corners = starts.medoid_start(image, real_side, 16, 16, count, (0, "x"))
        assert tiles.shape == (count, 3, 16, 16)
        assert len(set(corners)) == count


def test_one_medoid_is_the_crop_nearest_to_the_whole_image(real: RealImage) -> None:
    """By the characteristic functions of the first set, weighted by their weight."""
    points = real.embeddings(16)
    mean = (real.weight_sums[:, None] * points).sum(0) / real.weight_sums.sum()
    nearest = int((points - mean).square().sum(1).argmin())
    _, corners = starts.medoid_start(as_tensor(picture()), real, 16, 16, 1, (0, "x"))
    assert corners == [tuple(real.positions[nearest].tolist())]


def test_medoids_are_a_function_of_the_key(real: RealImage) -> None:
    image = as_tensor(picture())
    one, again = (starts.medoid_start(image, real, 16, 16, 4, (0, "x"))[1] for _ in range(2))
    assert one == again
    others = [starts.medoid_start(image, real, 16, 16, 4, (seed, "x"))[1] for seed in range(1, 6)]
    assert any(other != one for other in others)
