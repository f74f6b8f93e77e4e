from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idc_ray.condensation.crops import difficulty_map
from idc_ray.condensation.difficulty import bicubic_upscale, hardness_map
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.groups import balanced_groups
from idc_ray.condensation.matching import (
    HeldOutLoss,
    MatchingProblem,
    TileMatcher,
    _better,
    calls_are_independent,
)
from idc_ray.condensation.rlff import FrequencyBank, draw_bank
from idc_ray.condensation.targets import RealImage
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.condensation.tile_adam import TileAdam
from idc_ray.condensation.windows import cut
from idc_ray.config import Loss, Optimizer
from tests.condensation.conftest import as_tensor, literal_gradient, measured, picture

#: Weights by difficulty and gradient alike, so that everything takes part.
LOSS = Loss(hardness="both")
BATCHES = FixedBatches(2, shared=True)


def _measure(reader: FeatureReader, bank: FrequencyBank, lr: Tensor, gamma: float = 1.0) -> RealImage:
    hardness = hardness_map(LOSS.hardness, difficulty_map(reader, lr, BATCHES)[None], lr[None].float() / 255)[0]
    return measured(reader, bank, lr, hardness, gamma)


def _problem(
    reader: FeatureReader, bank: FrequencyBank, seed: int = 0, tiles: int = 2, gamma: float = 1.0
) -> MatchingProblem:
    """A picture, and crops of it, the first ones, as the start."""
    lr = as_tensor(picture(seed=seed))
    real = _measure(reader, bank, lr, gamma)
    points = real.embeddings(16)
    shares = balanced_groups(points, real.weight_sums, points[:tiles])
    start = cut(lr, real.positions[:tiles], 16)
    return MatchingProblem(start, real.mean, real.std, real.weighting, real.targets(shares))


def _matcher(reader: FeatureReader, bank: FrequencyBank, shared: bool = True, **optimizer: float) -> TileMatcher:
    return TileMatcher(reader, bank, LOSS, Optimizer(**optimizer), FixedBatches(2, shared))  # type: ignore[arg-type]


@torch.no_grad()
def _literal_loss(reader: FeatureReader, bank: FrequencyBank, problem: MatchingProblem, tiles: Tensor) -> Tensor:
    """Held-out loss at each frequency of 8-bit tiles, both levels, with an unfold in float64, tile by tile."""
    frequencies = bank.frequencies(bank.held_out).double().flatten(1)
    scaled, masses = [], []
    for tile in tiles.float()[:, None] / 255:
        features = reader.features(tile).double()[0]
        features = (features - problem.mean.double()[:, None, None]) / problem.std.double()[:, None, None]
        reflected = F.pad(tile, (2,) * 4, mode="reflect")
        error = (reader.teacher.upscale(reflected) - bicubic_upscale(reflected, 2)).abs().mean(1).double()
        hard = (
            (F.avg_pool2d(error, 2)[0, 3:17, 3:17] * torch.tensor(literal_gradient(tile[0].numpy()))).sqrt().flatten()
        )
        weighting = problem.weighting
        weights = ((hard / weighting.mean + weighting.floor) ** weighting.gamma).clamp_max(weighting.ceiling)
        phases = frequencies @ F.unfold(features[None], 3)[0]
        scaled.append(torch.stack([phases.cos() @ weights, phases.sin() @ weights], -1))
        masses.append(weights.sum())
    image, groups = problem.targets.at(None, len(frequencies))
    instance = (torch.stack(scaled).sum(0) / torch.stack(masses).sum() - image).square().sum(-1)
    by_tile = torch.stack([s / m for s, m in zip(scaled, masses, strict=True)])
    return instance + (by_tile - groups).square().sum(-1).mean(0)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_an_image_matched_against_itself_has_no_loss(reader: FeatureReader, bank: FrequencyBank, gamma: float) -> None:
    """All its crops as tiles, each its own group: whatever the two sides do differently shows here."""
    lr = as_tensor(picture(32, 48))
    real = _measure(reader, bank, lr, gamma)
    problem = MatchingProblem(
        cut(lr, real.positions, 16), real.mean, real.std, real.weighting, real.targets(real.weight_sums.diag())
    )
    (result,) = _matcher(reader, bank).match([problem], 0)
    assert result.start.total < 1e-9
    other = replace(problem, start=problem.start.flip(-1).flip(0))
    assert _matcher(reader, bank).match([other], 0)[0].start.total > 1e-4


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_order_of_tiles_does_not_matter(reader: FeatureReader, bank: FrequencyBank, gamma: float) -> None:
    """As long as each keeps its group: a distribution has no order."""
    problem = _problem(reader, bank, tiles=5, gamma=gamma)
    order = torch.tensor([3, 0, 4, 1, 2])
    targets = replace(problem.targets, groups=problem.targets.groups[order])
    turned = replace(problem, start=problem.start[order], targets=targets)
    one, other = (_matcher(reader, bank).match([p], 0)[0].start for p in (problem, turned))
    assert one.total == pytest.approx(other.total, rel=1e-5)
    assert one.per_bandwidth == pytest.approx(other.per_bandwidth, rel=1e-4)


@pytest.mark.parametrize(("shared", "gammas"), [(True, (1.0, 0.0)), (True, (0.0, 0.0)), (False, (1.0, 1.0))])
def test_tiles_of_an_image_do_not_depend_on_images_matched_with_it(
    reader: FeatureReader, bank: FrequencyBank, shared: bool, gammas: tuple[float, float]
) -> None:
    """Else a resumed run, or another number of actors, would give other rows."""
    a = _problem(reader, bank, 0, tiles=3, gamma=gammas[0])
    b, c = _problem(reader, bank, 1, tiles=2, gamma=gammas[1]), _problem(reader, bank, 2, tiles=4, gamma=gammas[1])

    def run(problems: Sequence[MatchingProblem], place: int) -> tuple[Tensor, HeldOutLoss, HeldOutLoss]:
        result = _matcher(reader, bank, shared, weight_refresh=2).match(problems, 3)[place]
        return result.tiles, result.start, result.end

    alone = run([a], 0)
    for problems, place in (([a, b], 0), ([a, c], 0), ([b, a], 1), ([c, b, a], 2)):
        tiles, start, end = run(problems, place)
        assert torch.equal(tiles, alone[0])
        assert (start, end) == alone[1:]
    assert not torch.equal(alone[0], a.start)


def test_tiles_do_not_depend_on_what_is_kept_for_the_backward_pass(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Recomputing saves memory; the run that has to resort to it must give the rows of one that has not."""
    problems = [_problem(reader, bank, seed, tiles) for seed, tiles in enumerate((3, 5))]
    kept, frugal = _matcher(reader, bank), _matcher(reader, bank)
    frugal.kept_calls = 0
    for a, b in zip(kept.match(problems, 4), frugal.match(problems, 4), strict=True):
        assert torch.equal(a.tiles, b.tiles)
        assert a.end == b.end


def test_reported_losses_are_the_held_out_losses_of_the_tiles_after_rounding(
    reader: FeatureReader, bank: FrequencyBank
) -> None:
    """Not of the frequencies that were optimised on, nor of pixels that 8 bits cannot hold."""
    problem = _problem(reader, bank, tiles=3)
    (result,) = _matcher(reader, bank, learning_rate=0.02).match([problem], 12)
    assert not result.kept_start
    assert result.tiles.dtype == torch.uint8
    for tiles, reported in ((problem.start, result.start), (result.tiles, result.end)):
        literal = _literal_loss(reader, bank, problem, tiles)
        assert reported.total == pytest.approx(float(literal.mean()), rel=1e-3)
        assert reported.per_bandwidth == pytest.approx(literal.view(4, -1).mean(1).tolist(), rel=1e-3, abs=1e-6)


def test_optimisation_lowers_the_held_out_loss_a_lot(reader: FeatureReader) -> None:
    """A wrong sign or a broken gradient would leave the start in place, for every image, and still pass."""
    bank = draw_bank(0, 8, 3, (0.5, 1.0, 2.0, 4.0), num_sets=4, num_frequencies=64, num_held_out=64)
    lr = as_tensor(picture())
    real = _measure(reader, bank, lr)
    problem = MatchingProblem(
        cut(lr, real.positions[:1], 16), real.mean, real.std, real.weighting, real.targets(real.weight_sums[:, None])
    )
    (result,) = _matcher(reader, bank, learning_rate=0.02).match([problem], 40)
    assert result.end.total < 0.5 * result.start.total
    assert not result.kept_start


def test_the_start_is_kept_where_optimising_made_it_worse(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Also with an absurd rate: black and white blocks must not become training data."""
    lr = as_tensor(picture(16, 32))
    real = _measure(reader, bank, lr)
    targets = real.targets(real.weight_sums.diag())
    problem = MatchingProblem(cut(lr, real.positions, 16), real.mean, real.std, real.weighting, targets)
    (result,) = _matcher(reader, bank, learning_rate=1e4).match([problem], 3)
    assert result.kept_start
    assert torch.equal(result.tiles, problem.start)
    assert result.end.total > 0.1 > 1e-9 > result.start.total


def test_a_tie_and_a_loss_that_is_not_finite_keep_the_start() -> None:
    """NaN compares false with everything; and a row with a NaN loss spoils every mean it enters."""
    start, end = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.ones(1, 3, 2, 2, dtype=torch.uint8)
    before = HeldOutLoss(0.5, [0.5])
    for total in (0.5, 0.6, math.nan, math.inf):
        result = _better(start, end, before, HeldOutLoss(total, [total]))
        assert result.kept_start and torch.equal(result.tiles, start)
        assert math.isfinite(result.end.total)
    assert torch.equal(_better(start, end, before, HeldOutLoss(0.4, [0.4])).tiles, end)


def test_no_iterations_give_the_start_and_its_loss(reader: FeatureReader, bank: FrequencyBank) -> None:
    """IDC's own start is the most important baseline: it must have no step in it."""
    problem = _problem(reader, bank)
    (result,) = _matcher(reader, bank).match([problem], 0)
    assert torch.equal(result.tiles, problem.start)
    assert result.start == result.end


@pytest.mark.parametrize("kind", ["squared", "amplitude_phase"])
def test_a_flat_image_stays_finite(reader: FeatureReader, bank: FrequencyBank, kind: str) -> None:
    """No deviation, no difficulty and no distance: three places to divide by 0."""
    lr = torch.full((3, 20, 33), 128, dtype=torch.uint8)
    real = _measure(reader, bank, lr)
    targets = real.targets(real.weight_sums[:, None])
    for start in (cut(lr, real.positions[:1], 16), as_tensor(picture())[None, :, :16, :16]):
        problem = MatchingProblem(start, real.mean, real.std, real.weighting, targets)
        matcher = TileMatcher(
            reader, bank, Loss.model_validate({"discrepancy": kind}), Optimizer(), FixedBatches(2, shared=True)
        )
        (result,) = matcher.match([problem], 6)
        assert math.isfinite(result.start.total) and math.isfinite(result.end.total)
        pixels = matcher._optimise([problem], 6)[0]
        # NaN pixels become 0 when they are rounded: of a grey image, or of this picture, nothing is as dark.
        assert int(pixels.min()) > 10


@pytest.mark.parametrize(("instance", "group"), [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_levels_have_the_configured_weights(
    reader: FeatureReader, bank: FrequencyBank, instance: float, group: float
) -> None:
    problem = _problem(reader, bank, tiles=3)

    def start(**weights: float) -> float:
        loss = Loss(**weights)  # type: ignore[arg-type]
        return TileMatcher(reader, bank, loss, Optimizer(), BATCHES).match([problem], 0)[0].start.total

    separate = instance * start(instance=1, group=0) + group * start(instance=0, group=1)
    assert start(instance=instance, group=group) == pytest.approx(separate, rel=1e-5)


def test_every_set_of_the_bank_is_used_in_turn(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Bank of two sets, two steps: changing either set must change the tiles, changing the held-out one must not."""
    problem = _problem(reader, bank)

    def tiles(changed: FrequencyBank) -> Tensor:
        return _matcher(reader, changed, learning_rate=0.05)._optimise([problem], 2)[0]

    expected = tiles(bank)
    for index in (0, 1):
        directions = bank.directions.clone()
        directions[index] *= -0.7
        assert not torch.equal(tiles(replace(bank, directions=directions)), expected)
    assert torch.equal(tiles(replace(bank, held_out=-bank.held_out)), expected)


def test_weights_of_the_tiles_are_renewed_every_weight_refresh_steps(
    reader: FeatureReader, bank: FrequencyBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never renewed they belong to other tiles; renewed every step they cost as much as the rest."""
    matcher = _matcher(reader, bank, weight_refresh=3)
    steps: list[int] = []
    renewed: list[int] = []
    weights = matcher._weights
    monkeypatch.setattr(matcher, "_weights", lambda *a: (renewed.append(len(steps)), weights(*a))[1])
    step = TileAdam.step
    monkeypatch.setattr(TileAdam, "step", lambda self, rate: (steps.append(1), step(self, rate))[1])
    matcher._optimise([_problem(reader, bank, tiles=1)], 8)
    assert renewed == [0, 3, 6]


@pytest.mark.parametrize("level", [0, 255])
def test_pixels_stay_in_range_instead_of_wrapping_round(reader: FeatureReader, bank: FrequencyBank, level: int) -> None:
    """The first step is 2.6 grey levels in the quadratic mean: a white pixel that grew brighter would come out as 2."""
    problem = _problem(reader, bank, tiles=1)
    problem = replace(problem, start=torch.full_like(problem.start, level))
    (tiles,) = _matcher(reader, bank, learning_rate=0.01)._optimise([problem], 1)
    assert 3 <= int((tiles.int() - level).abs().max()) <= 30
    assert bool((tiles == level).any())


def test_turns_hold_no_more_calls_than_are_kept_and_lose_no_image(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Memory would grow with the number of images in a step; a problem lost at a cut would take another's tiles."""
    problems = [_problem(reader, bank, seed, tiles) for seed, tiles in enumerate((1, 3, 1, 5, 2))]
    for shared in (True, False):
        matcher = _matcher(reader, bank, shared)
        for kept in (0, 1, 2, 3, 100):
            matcher.kept_calls = kept
            turns = matcher._turns(problems)
            assert [id(p) for turn in turns for p in turn] == [id(p) for p in problems]
            assert all(len(turn) == 1 or len(matcher._calls(turn)) <= kept for turn in turns)
    assert matcher.match([], 3) == []


def test_calls_whose_tiles_see_each_other_are_found_out(reader: FeatureReader, bank: FrequencyBank) -> None:
    """Then images do not share a call: slower, but the same result wherever it ran."""

    class Mixing:
        scale, channels = 2, 8

        def features(self, lr: Tensor) -> Tensor:
            return reader.teacher.features(lr + 1e-6 * lr.mean())

        def upscale(self, lr: Tensor) -> Tensor:
            return reader.teacher.upscale(lr)

        def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
            return self.features(lr), self.upscale(lr)

    assert calls_are_independent(reader, bank, 4)
    assert not calls_are_independent(replace(reader, teacher=Mixing()), bank, 4)
