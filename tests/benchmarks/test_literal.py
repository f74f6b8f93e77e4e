"""The yardstick must measure the same thing: with equal frequencies the literal method has our loss and gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.literal import PROJECTIONS, LiteralImage, LiteralMatcher, by_convolution, by_unfolding
from idc_ray.condensation.crops import Crops, difficulty_map
from idc_ray.condensation.difficulty import hardness_map
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.groups import balanced_groups
from idc_ray.condensation.matching import MatchingProblem, TileMatcher
from idc_ray.condensation.rlff import FrequencyBank, draw_bank
from idc_ray.condensation.starts import crop_start, hardest_windows
from idc_ray.condensation.targets import measure_image
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.config import Loss, Optimizer
from idc_ray.models.edsr import EDSR
from idc_ray.models.teacher import Teacher

TILES, BATCHES = 3, FixedBatches(2, shared=True)


@dataclass
class Case:
    reader: FeatureReader
    bank: FrequencyBank
    image: LiteralImage
    problem: MatchingProblem
    tiles: Tensor


@pytest.fixture(scope="module", params=["uniform", "difficulty"])
def case(request: pytest.FixtureRequest) -> Case:
    """A picture whose last crops overlap their neighbours, smooth on one side: coverage and weights matter."""
    torch.manual_seed(0)
    teacher = Teacher(EDSR(2, channels=8, blocks=2), scale=2, name="random", sha256="0" * 64)
    reader = FeatureReader(teacher, tile=16, padding=2, kernel=3)
    bank = draw_bank(0, 8, 3, (0.5, 1.0, 2.0, 4.0), num_sets=2, num_frequencies=16, num_held_out=16)
    random = np.random.default_rng(0)
    y, x = np.mgrid[:41, :55]
    picture = (120 + 60 * np.sin(y / 9 + x / 11))[..., None] + random.normal(0, 40, (41, 55, 3)) * (x > 30)[..., None]
    lr = torch.from_numpy(picture.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()
    hardness = hardness_map(Loss().hardness, difficulty_map(reader, lr, BATCHES)[None], lr[None].float() / 255)[0]
    crops = Crops(reader, lr, BATCHES)
    real, _ = measure_image(crops, bank, hardness, crops.weighting(hardness, 1.0, 0.01, 99.0))
    start, _ = crop_start(lr, hardest_windows(hardness, 16, TILES), 16)
    points = real.embeddings(16)
    shares = balanced_groups(points, real.weight_sums, points[:TILES])
    weighting = real.weighting.of_tiles(request.param)
    problem = MatchingProblem(start, real.mean, real.std, weighting, real.targets(shares))
    image = LiteralImage.cut_from(reader, lr, hardness, shares, real.mean, real.std, real.weighting)
    image = replace(image, weighting=weighting)
    tiles = (start.float() / 255 + 0.05 * torch.rand(start.shape)).clamp(0, 1)
    return Case(reader, bank, image, problem, tiles)


def _literal(case: Case, name: str, loss: Loss, index: int) -> tuple[Tensor, Tensor, Tensor]:
    matcher = LiteralMatcher(case.reader, PROJECTIONS[name], loss, Optimizer(), BATCHES.size)
    tiles = case.tiles.clone().requires_grad_()
    weights = matcher.weights(case.image, case.tiles)
    value = matcher.loss(case.image, tiles, weights, case.bank.sets[index])
    value.backward()
    assert tiles.grad is not None
    return value.detach(), tiles.grad, weights


def _ours(case: Case, loss: Loss, index: int) -> tuple[Tensor, Tensor, Tensor]:
    matcher = TileMatcher(case.reader, case.bank, loss, Optimizer(), BATCHES)
    tiles = case.tiles.clone().requires_grad_()
    weights = matcher._weights([case.problem], [tiles])
    sums = matcher._sums([case.problem], [tiles], weights, index)
    value = matcher._loss(sums[0], weights[0].sum((1, 2)), case.problem.targets, index).mean()
    value.backward()
    assert tiles.grad is not None
    return value.detach(), tiles.grad, weights[0]


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("discrepancy", ["squared", "amplitude_phase"])
@pytest.mark.parametrize("name", PROJECTIONS)
def test_loss_and_gradient_are_those_of_the_package(case: Case, name: str, discrepancy: str, index: int) -> None:
    """Catches targets of the wrong set or group, positions counted twice, weights on one side only."""
    loss = Loss.model_validate({"discrepancy": discrepancy, "instance": 0.7, "group": 1.3})
    literal, literal_gradient, literal_weights = _literal(case, name, loss, index)
    ours, gradient, weights = _ours(case, loss, index)
    torch.testing.assert_close(weights, literal_weights)
    torch.testing.assert_close(ours, literal, rtol=1e-4, atol=0)
    assert float((gradient - literal_gradient).norm() / literal_gradient.norm()) < 1e-3


@pytest.mark.parametrize("level", ["instance", "group"])
def test_each_level_alone_is_that_of_the_package(case: Case, level: str) -> None:
    """An error of one level must not hide behind the other."""
    loss = Loss.model_validate({"instance": 0.0, "group": 0.0} | {level: 1.0})
    literal, *_ = _literal(case, "convolution", loss, 0)
    ours, *_ = _ours(case, loss, 0)
    torch.testing.assert_close(ours, literal, rtol=1e-4, atol=0)


def test_convolution_is_unfolding() -> None:
    features, frequencies = torch.randn(2, 5, 9, 7, dtype=torch.float64), torch.randn(6, 5, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(by_convolution(features, frequencies), by_unfolding(features, frequencies))


def test_steps_with_fixed_frequencies_are_those_of_the_package(case: Case) -> None:
    """The whole loop, with one set and no redrawing: the same tiles to a grey level."""
    one_set = FrequencyBank(case.bank.directions[:1], case.bank.held_out, case.bank.bandwidths)
    ours = TileMatcher(case.reader, one_set, Loss(), Optimizer(), BATCHES)
    optimised = ours._optimise([case.problem], 3)[0]
    literal = LiteralMatcher(case.reader, by_convolution, Loss(), Optimizer(), BATCHES.size)
    *_, pixels = literal.steps(case.image, case.problem.start, 3, lambda step: one_set.sets[0])
    assert int((pixels.int() - optimised.int()).abs().max()) <= 1
    assert not torch.equal(pixels, case.problem.start)
