"""What was made faster or smaller still gives the same result: bit for bit, or where it says so to rounding."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from idc_ray.condensation import crops, matching
from idc_ray.condensation.crops import Crops
from idc_ray.condensation.difficulty import Weighting
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.matching import MatchingProblem, TileMatcher
from idc_ray.condensation.rlff import FrequencyBank, _cos_sin, draw_bank, fourier_sums
from idc_ray.condensation.targets import RealImage, RealTargets, measure_image
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.config import Loss, Optimizer
from tests.condensation.conftest import BATCHES, as_tensor, measured, picture


def _sums_and_gradient(
    features: Tensor, kernels: Tensor, weights: Tensor, scales: Sequence[float] = (1.0,)
) -> tuple[Tensor, Tensor]:
    features = features.clone().requires_grad_()
    sums = fourier_sums(features, kernels, weights, scales)
    factors = torch.arange(sums[0].numel(), dtype=sums.dtype).view_as(sums[0])
    (sums * factors).flatten(1).sum(1).square().sum().backward()
    assert features.grad is not None
    return sums.detach(), features.grad


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 0, 1], [1, 1, 1]])
def test_fourier_sums_of_a_map_do_not_depend_on_other_maps(order: list[int]) -> None:
    """On a CPU maps are projected one at a time; a wrong index would mix their weights or gradients."""
    features, kernels, weights = torch.randn(3, 4, 9, 11), torch.randn(8, 4, 3, 3), torch.rand(3, 7, 9)
    alone = _sums_and_gradient(features[1:2], kernels, weights[1:2])
    together = _sums_and_gradient(features[order], kernels, weights[order])
    place = order.index(1)
    assert all(torch.equal(a[0], b[place]) for a, b in zip(alone, together, strict=True))


def test_shared_directions_give_the_sums_and_gradient_of_the_frequencies_they_stand_for() -> None:
    """To rounding: one convolution serves all scales, its gradient is added up over them before it goes back."""
    features, directions = torch.randn(2, 4, 6, 7, dtype=torch.float64), torch.randn(3, 4, 3, 3, dtype=torch.float64)
    weights, scales = torch.rand(2, 4, 5, dtype=torch.float64), (0.5, 1.0, 3.0, 6.0)
    frequencies = torch.cat([directions * scale for scale in scales])
    expected = _sums_and_gradient(features, frequencies, weights)
    torch.testing.assert_close(_sums_and_gradient(features, directions, weights, scales), expected)


def test_a_bank_s_sets_are_its_directions_at_each_bandwidth(bank: FrequencyBank) -> None:
    features, weights = torch.randn(1, 8, 9, 9), torch.rand(1, 7, 7)
    shared = fourier_sums(features, bank.directions[1], weights, bank.bandwidths)
    torch.testing.assert_close(shared, fourier_sums(features, bank.sets[1], weights), rtol=0, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_numpy_s_cos_and_sin_are_torch_s(threads: int) -> None:
    """To 3e-7; with several threads torch's own are used."""
    phases = 20 * torch.randn(1, 8, 33, 35)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        cos, sin = torch.empty_like(phases), torch.empty_like(phases)
        _cos_sin(phases, cos, sin)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(cos, phases.double().cos().float(), rtol=0, atol=3e-7)
    torch.testing.assert_close(sin, phases.double().sin().float(), rtol=0, atol=3e-7)


class _Counting:
    """A teacher that counts the tiles whose features it was asked for."""

    def __init__(self, teacher: object) -> None:
        self.teacher, self.scale, self.channels, self.tiles = teacher, 2, 8, 0

    def features(self, lr: Tensor) -> Tensor:
        self.tiles += len(lr)
        return self.teacher.features(lr)  # type: ignore[attr-defined,no-any-return]

    def upscale(self, lr: Tensor) -> Tensor:
        return self.teacher.upscale(lr)  # type: ignore[attr-defined,no-any-return]

    def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        return self.features(lr), self.upscale(lr)


def _measured(reader: FeatureReader, bank: FrequencyBank) -> RealImage:
    return measured(reader, bank, as_tensor(picture()), _hardness())


def _hardness() -> Tensor:
    return torch.rand(52, 70, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("calls_kept", "passes"), [(0, 2.0), (3, 1.7), (1000, 1.0)])
def test_features_kept_from_the_first_pass_change_no_bit_of_the_targets(
    reader: FeatureReader, bank: FrequencyBank, monkeypatch: pytest.MonkeyPatch, calls_kept: int, passes: float
) -> None:
    """Also that they are really kept, and no more of them than there is room for."""
    expected = _measured(reader, bank)
    counting = _Counting(reader.teacher)
    monkeypatch.setattr(crops, "KEPT_BYTES", calls_kept * 2 * 8 * 16 * 16 * 4)
    counted = FeatureReader(counting, reader.tile, reader.padding, reader.kernel)
    image = Crops(counted, as_tensor(picture()), BATCHES)
    image.difficulties()
    assert counting.tiles == 20
    hardness = _hardness()
    real, _ = measure_image(image, bank, hardness, image.weighting(hardness, 1.0, 0.01, 99))
    assert counting.tiles == passes * 20  # 4 x 5 crops
    assert torch.equal(real.feature_sums, expected.feature_sums)
    assert torch.equal(real.mean, expected.mean)
    assert torch.equal(real.std, expected.std)


def _problem(bank: FrequencyBank, tiles: int, seed: int) -> MatchingProblem:
    random = torch.Generator().manual_seed(seed)
    start = torch.randint(0, 256, (tiles, 3, 16, 16), generator=random, dtype=torch.uint8)
    frequencies = bank.sets.shape[0] * bank.sets.shape[1] + len(bank.frequencies(bank.held_out))
    image, groups = (torch.rand(shape, generator=random) - 0.5 for shape in ((frequencies, 2), (tiles, frequencies, 2)))
    targets_of_image = RealTargets(image, groups, len(bank.sets))
    return MatchingProblem(start, torch.zeros(8), torch.ones(8), Weighting(0.1, 3.0, 1.0, 0.01), targets_of_image)


def _matched(
    reader: FeatureReader, bank: FrequencyBank, problems: Sequence[MatchingProblem], kept_calls: int
) -> list[Tensor]:
    matcher = TileMatcher(reader, bank, Loss(), Optimizer(), FixedBatches(2, shared=True))
    matcher.kept_calls = kept_calls
    return [result.tiles for result in matcher.match(problems, iterations=3)]


@pytest.mark.parametrize("kept_calls", [0, 1, 2])
def test_recomputing_and_taking_turns_change_no_bit_of_the_tiles(
    reader: FeatureReader, bank: FrequencyBank, kept_calls: int
) -> None:
    """Three images need four calls together: with fewer kept they take turns, and the largest recomputes."""
    problems = [_problem(bank, tiles, seed) for seed, tiles in enumerate((1, 5, 1))]
    expected = _matched(reader, bank, problems, kept_calls=matching.KEPT_CALLS)
    tiles = _matched(reader, bank, problems, kept_calls)
    assert all(torch.equal(a, b) for a, b in zip(tiles, expected, strict=True))
    assert not torch.equal(tiles[0], problems[0].start)


def test_activations_are_recomputed_only_above_what_is_kept(reader: FeatureReader, bank: FrequencyBank) -> None:
    """An image of three calls with two kept passes four times through the teacher a step, not six."""
    counting = _Counting(reader.teacher)
    matcher = TileMatcher(
        FeatureReader(counting, reader.tile, reader.padding, reader.kernel),
        bank,
        Loss(),
        Optimizer(),
        FixedBatches(2, shared=True),
    )
    matcher.kept_calls = 2
    matcher.match([_problem(bank, 5, 0)], iterations=0)
    held_out = counting.tiles
    counting.tiles = 0
    matcher.match([_problem(bank, 5, 0)], iterations=1)
    assert held_out == 3 * 2
    assert counting.tiles == 2 * held_out + 4 * 2


def test_held_out_targets_are_the_last_ones_however_many_there_are(reader: FeatureReader) -> None:
    """A held-out set of another size than the optimised ones was searched at the wrong offset."""
    bank = draw_bank(0, 8, 3, (0.5, 1.0, 2.0, 4.0), num_sets=2, num_frequencies=16, num_held_out=8)
    real = _measured(reader, bank)
    targets_of_image = real.targets(real.weight_sums.unsqueeze(1))
    image, groups = targets_of_image.at(None, 8)
    assert torch.equal(image, targets_of_image.image[32:])
    assert groups.shape == (1, 8, 2)
    assert torch.equal(targets_of_image.at(1, 16)[0], targets_of_image.image[16:32])
