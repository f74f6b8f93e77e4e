from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idc_ray.condensation.crops import ABSOLUTE_FLOOR, RELATIVE_FLOOR, _crop_coverage, difficulty_map
from idc_ray.condensation.difficulty import Weighting, bicubic_upscale
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.groups import balanced_groups
from idc_ray.condensation.rlff import FrequencyBank
from idc_ray.condensation.targets import (
    RealImage,
    standardise,
)
from idc_ray.condensation.teacher_features import FeatureReader, Teacher
from idc_ray.condensation.windows import candidate_positions
from tests.condensation.conftest import as_tensor, measured, picture


def _hardness(height: int, width: int) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(0)) ** 2


def _measure(reader: FeatureReader, bank: FrequencyBank, lr: Tensor, gamma: float = 1.0) -> RealImage:
    return measured(reader, bank, lr, _hardness(*lr.shape[1:]), gamma)


def _literal_features(reader: FeatureReader, lr: Tensor) -> dict[tuple[int, int], tuple[tuple[int, int], Tensor]]:
    """By the words: image position of a local feature to the first crop that holds it, and its c k k numbers."""
    seen: dict[tuple[int, int], tuple[tuple[int, int], Tensor]] = {}
    side, kernel = reader.tile, reader.kernel
    for top, left in candidate_positions(lr.shape[1], lr.shape[2], side, side).tolist():
        crop = lr[None, :, top : top + side, left : left + side].float() / 255
        with torch.no_grad():
            vectors = F.unfold(reader.features(crop).double(), kernel)[0].T
        for index, vector in enumerate(vectors):
            down, across = divmod(index, reader.positions)
            place = (top + down + kernel // 2, left + across + kernel // 2)
            seen.setdefault(place, ((top, left), vector))
    return seen


def _literal_targets(
    reader: FeatureReader, bank: FrequencyBank, lr: Tensor, real: RealImage, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """phi of the image (m, 2), weighted sums (n, m, 2) and masses (n,) of the crops, in float64 with an unfold."""
    local = _literal_features(reader, lr)
    difficulties = torch.stack([_hardness(*lr.shape[1:])[place].double() for place in local])
    weights = (difficulties / difficulties.mean() + 0.01) ** gamma
    weights = weights.clamp_max(float(weights.sort().values[min(len(weights) - 1, int(0.99 * len(weights)))]))
    frequencies = torch.cat([*bank.sets, bank.frequencies(bank.held_out)]).double().flatten(1)
    channels = real.mean.double().repeat_interleave(reader.kernel**2), real.std.double().repeat_interleave(9)
    vectors = (torch.stack([vector for _, vector in local.values()]) - channels[0]) / channels[1]
    phases = vectors @ frequencies.T
    terms = torch.stack([phases.cos(), phases.sin()], -1) * weights[:, None, None]
    corners = [tuple(position) for position in real.positions.tolist()]
    crops = torch.tensor([corners.index(corner) for corner, _ in local.values()])
    sums = torch.zeros(len(corners), *terms.shape[1:], dtype=torch.float64).index_add_(0, crops, terms)
    masses = torch.zeros(len(corners), dtype=torch.float64).index_add_(0, crops, weights)
    return terms.sum(0) / weights.sum(), sums, masses


@pytest.mark.parametrize(
    ("height", "width", "kernel"), [(16, 16, 3), (17, 31, 3), (32, 48, 3), (33, 40, 5), (47, 16, 1)]
)
def test_each_local_feature_counts_exactly_once(teacher: Teacher, height: int, width: int, kernel: int) -> None:
    """The last crops overlap those before; counted twice, the border strip would weigh double."""
    reader = FeatureReader(teacher, 16, 2, kernel)
    positions = candidate_positions(height, width, 16, 16)
    coverage = _crop_coverage(positions, reader)
    count, covered = torch.zeros(height, width), torch.zeros(height, width)
    for (top, left), mask in zip(positions.tolist(), coverage, strict=True):
        rows = slice(top + kernel // 2, top + kernel // 2 + reader.positions)
        columns = slice(left + kernel // 2, left + kernel // 2 + reader.positions)
        count[rows, columns] += mask
        covered[rows, columns] = 1
    assert torch.equal(count, covered)


@pytest.mark.parametrize(("height", "width", "gamma"), [(36, 41, 1.0), (32, 16, 0.0), (16, 25, 2.0)])
def test_targets_equal_the_literal_definition(
    reader: FeatureReader, bank: FrequencyBank, height: int, width: int, gamma: float
) -> None:
    """Unfold of all crops, float64, one frequency after the other: sets, weights, masses, image and groups."""
    lr = as_tensor(picture(height, width))
    real = _measure(reader, bank, lr, gamma)
    image, sums, masses = _literal_targets(reader, bank, lr, real, gamma)
    assert torch.allclose(real.weight_sums, masses, rtol=1e-5)
    shares = balanced_groups(real.embeddings(16), real.weight_sums, real.embeddings(16)[:2])
    targets = real.targets(shares)
    assert torch.allclose(targets.image.double(), image, atol=2e-5)
    # A crop that two groups share gives each its whole distribution, by the share of its mass.
    groups = torch.einsum("ng,nmz->gmz", shares / masses[:, None], sums) / shares.sum(0)[:, None, None]
    assert torch.allclose(targets.groups.double(), groups, atol=2e-5)


def test_statistics_are_those_of_the_local_features_centres(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Each once: overlapping crops must not count twice here either."""
    lr = as_tensor(picture(36, 41))
    real = _measure(reader, bank, lr)
    centres = torch.stack([vector.view(-1, 9)[:, 4] for _, vector in _literal_features(reader, lr).values()])
    assert torch.allclose(real.mean.double(), centres.mean(0), atol=1e-5)
    std = centres.std(0, correction=0)
    assert torch.allclose(real.std.double(), std.clamp_min(float(RELATIVE_FLOOR * std.max())), rtol=1e-3)


def test_groups_of_equal_mass_average_to_the_image(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Students see tiles equally often: what the groups stand for together has to be the image."""
    real = _measure(reader, bank, as_tensor(picture()))
    shares = balanced_groups(real.embeddings(16), real.weight_sums, real.embeddings(16)[:3])
    targets = real.targets(shares)
    assert torch.allclose(shares.sum(0), real.weight_sums.sum().expand(3) / 3)
    assert torch.allclose(targets.groups.mean(0), targets.image, atol=1e-6)
    one = real.targets(real.weight_sums[:, None])
    assert torch.allclose(one.groups[0], targets.image, atol=1e-6)


def test_the_batch_size_changes_nothing_but_rounding(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Padding of the last call must not count: 20 crops in calls of 2, 3 and 32."""
    lr = as_tensor(picture())
    expected = _measure(reader, bank, lr)
    for batch, shared in ((3, False), (3, True), (32, True)):
        real = measured(reader, bank, lr, _hardness(*lr.shape[1:]), batches=FixedBatches(batch, shared))
        assert torch.allclose(real.feature_sums, expected.feature_sums, rtol=1e-4, atol=1e-2)
        assert torch.equal(real.weight_sums, expected.weight_sums)


def test_a_flat_image_has_floored_deviations_and_finite_targets(reader: FeatureReader, bank: FrequencyBank) -> None:
    lr = torch.full((3, 20, 33), 128, dtype=torch.uint8)
    real = measured(reader, bank, lr, torch.zeros(20, 33))
    assert float(real.std.min()) >= ABSOLUTE_FLOOR * 0.999
    targets = real.targets(real.weight_sums[:, None])
    assert bool(targets.image.isfinite().all() and targets.groups.isfinite().all())


def test_standardise_takes_one_row_for_all_or_one_for_each_tile() -> None:
    features, mean, std = torch.rand(2, 3, 4, 5), torch.rand(2, 3), torch.rand(2, 3) + 0.1
    rows = [standardise(features[i : i + 1], mean[i], std[i]) for i in range(2)]
    assert torch.equal(standardise(features, mean, std), torch.cat(rows))
    assert torch.allclose(rows[1][0, 2], (features[1, 2] - mean[1, 2]) / std[1, 2])


@torch.no_grad()
def test_difficulty_map_equals_its_definition_tile_by_tile(reader: FeatureReader) -> None:
    """A result of one tile, or of a dummy, at another tile's place would send weights and budgets astray."""
    lr = as_tensor(picture(21, 39))
    expected = torch.full((21, 39), torch.nan)
    for top, left in candidate_positions(21, 39, 16, 16).tolist():  # where tiles overlap the last one counts
        tile = F.pad(lr[None, :, top : top + 16, left : left + 16].float() / 255, (2,) * 4, mode="reflect")
        error = (reader.teacher.upscale(tile).clamp(0, 1) - bicubic_upscale(tile, 2)).abs().mean(1)
        expected[top : top + 16, left : left + 16] = F.avg_pool2d(error, 2)[0, 2:18, 2:18]
    assert torch.allclose(difficulty_map(reader, lr, FixedBatches(4)), expected, atol=1e-6)


def test_features_that_are_not_finite_are_refused(bank: FrequencyBank, reader: FeatureReader) -> None:
    """Half precision overflows on some images; NaN targets would leave every start as it is, without a word."""

    class Overflowing:
        scale, channels = 2, 8

        def features(self, lr: Tensor) -> Tensor:
            return reader.teacher.features(lr).masked_fill(lr.mean(1, keepdim=True) > 0.9, torch.inf)

        def upscale(self, lr: Tensor) -> Tensor:
            return reader.teacher.upscale(lr)

        def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
            return self.features(lr), self.upscale(lr)

    broken = FeatureReader(Overflowing(), 16, 2, 3)
    image = picture(20, 33) // 2
    _measure(broken, bank, as_tensor(image)).embeddings(16)
    image[3, 4] = 255
    real = _measure(broken, bank, as_tensor(image))
    with pytest.raises(ValueError, match="not finite"):
        real.embeddings(16)


def test_weighting_is_fitted_to_each_feature_once(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Hard pixels in an overlap that count twice would raise the mean and lower every weight."""
    hardness = torch.zeros(16, 25)
    hardness[:, 9:16] = 1  # both crops hold these columns
    real = measured(reader, bank, as_tensor(picture(16, 25)), hardness, clip=100)
    inside = hardness[1:15, 1:24]
    assert real.weighting == Weighting.fit(inside.flatten(), 1, 0.01, 100)
