"""Multi-level distribution matching: learn the pixels of several images' tiles together (IDC, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from idc_ray.condensation.characteristic import discrepancy_per_frequency
from idc_ray.condensation.crops import ABSOLUTE_FLOOR
from idc_ray.condensation.difficulty import Weighting, hardness_map
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.rlff import FrequencyBank, fourier_sums
from idc_ray.condensation.targets import RealTargets, standardise
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.condensation.tile_adam import TileAdam
from idc_ray.condensation.transfer import to_host
from idc_ray.config import Loss, Optimizer

#: Teacher calls whose activations are kept for the backward pass. Images are optimised together as long as
#: their calls are no more; of an image with more calls, those above are recomputed in the backward pass.
KEPT_CALLS = 8


@dataclass(frozen=True)
class MatchingProblem:
    """One image's start and targets, statistics of its real side, and what positions of its tiles weigh."""

    start: Tensor  # uint8 (n, 3, p, p), what losses are compared with
    mean: Tensor  # (c,)
    std: Tensor  # (c,)
    weighting: Weighting
    targets: RealTargets
    exchanged: Tensor | None = None  # likewise, after the exchange of cells; None: there was none
    start_loss: Tensor | None = None  # of the start, if it is known, see TileMatcher.held_out_loss

    @property
    def begin(self) -> Tensor:
        """The tiles that pixels are learned from."""
        return self.start if self.exchanged is None else self.exchanged


@dataclass(frozen=True)
class HeldOutLoss:
    """Loss on the held-out frequencies, after rounding to 8 bits."""

    total: float
    per_bandwidth: list[float]

    @classmethod
    def read(cls, losses: Sequence[Tensor]) -> list[HeldOutLoss]:
        """Several of :meth:`TileMatcher.held_out_loss`; the host waits once for all of them."""
        (values,) = to_host(torch.stack(list(losses)))
        return [cls(total, per_bandwidth) for total, *per_bandwidth in values.tolist()]


@dataclass(frozen=True)
class Matched:
    """The tiles that are kept, uint8 (n, 3, p, p), and the held-out loss of the start and of the optimised tiles."""

    tiles: Tensor
    start: HeldOutLoss
    end: HeldOutLoss
    kept_start: bool


class TileMatcher:
    """Optimises tiles of many images with teacher calls of a fixed size.

    Args:
        reader: the teacher and the tile geometry.
        bank: the run's frequencies, on the teacher's device.
        loss: levels, weights and discrepancy.
        optimizer: Adam's settings.
        batches: division of the tiles into network calls; shared only if :func:`calls_are_independent`.

    Attributes:
        kept_calls: see :data:`KEPT_CALLS`. 0 needs least memory and most time; the result is bit-identical.
    """

    def __init__(
        self,
        reader: FeatureReader,
        bank: FrequencyBank,
        loss: Loss,
        optimizer: Optimizer,
        batches: FixedBatches,
    ) -> None:
        self.reader, self.bank, self.loss, self.optimizer = reader, bank, loss, optimizer
        self.batches, self.kept_calls = batches, KEPT_CALLS

    def match(self, problems: Sequence[MatchingProblem], iterations: int) -> list[Matched]:
        """Optimise every problem's tiles; the result for one does not depend on the others.

        Args:
            problems: images; all tiles on the teacher's device.
            iterations: Adam steps.
        """
        return [result for turn in self._turns(problems) for result in self._match_together(turn, iterations)]

    def _turns(self, problems: Sequence[MatchingProblem]) -> list[list[MatchingProblem]]:
        """Consecutive problems whose activations fit in memory together; at least one at a time."""
        turns: list[list[MatchingProblem]] = []
        for problem in problems:
            if turns and len(self._calls([*turns[-1], problem])) <= self.kept_calls:
                turns[-1].append(problem)
            else:
                turns.append([problem])
        return turns

    def _match_together(self, problems: Sequence[MatchingProblem], iterations: int) -> list[Matched]:
        starts = [problem.start for problem in problems]
        known = [problem.start_loss for problem in problems if problem.start_loss is not None]
        before = known if len(known) == len(problems) else self._held_out(problems, starts)
        tiles = [problem.begin for problem in problems]
        if iterations:
            tiles = self._optimise(problems, iterations)
        changed = iterations or any(problem.exchanged is not None for problem in problems)
        after = self._held_out(problems, tiles) if changed else before
        losses = HeldOutLoss.read([*before, *after])
        return [_better(*ends) for ends in zip(starts, tiles, losses[: len(tiles)], losses[len(tiles) :], strict=True)]

    def _optimise(self, problems: Sequence[MatchingProblem], iterations: int) -> list[Tensor]:
        # One tensor an image: where an image's values lie in memory does not depend on its neighbours.
        pixels = [(problem.begin.float() / 255).requires_grad_() for problem in problems]
        adam = TileAdam(pixels, self.optimizer.betas)
        weights = self._weights(problems, pixels)
        for step in range(iterations):
            if step and step % self.optimizer.weight_refresh == 0:
                weights = self._weights(problems, pixels)
            adam.zero_grad()
            index = step % len(self.bank.directions)
            sums = self._sums(problems, pixels, weights, index)
            losses = [
                self._loss(s, w.sum((1, 2)), problem.targets, index).mean()
                for s, w, problem in zip(sums, weights, problems, strict=True)
            ]
            torch.stack(losses).sum().backward()
            adam.step(self.optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * step / iterations)))
            with torch.no_grad():
                for image in pixels:
                    image.clamp_(0, 1)
        return [image.detach().mul(255).round_().to(torch.uint8) for image in pixels]

    def _loss(self, feature_sums: Tensor, weight_sums: Tensor, targets: RealTargets, index: int | None) -> Tensor:
        """Loss at each frequency, (m,): lambda_instance L_instance + lambda_group L_group."""
        image, groups = targets.at(index, feature_sums.shape[1])
        kind, alpha, beta = self.loss.discrepancy, self.loss.alpha, self.loss.beta
        instance = discrepancy_per_frequency(feature_sums.sum(0) / weight_sums.sum(), image, kind, alpha, beta)
        by_tile = feature_sums / weight_sums[:, None, None]
        group = discrepancy_per_frequency(by_tile, groups, kind, alpha, beta).mean(0)
        return self.loss.instance * instance + self.loss.group * group

    def held_out_loss(self, feature_sums: Tensor, weight_sums: Tensor, targets: RealTargets) -> Tensor:
        """Loss (1 + b,) of tiles, in total and at each of the b bandwidths, see :meth:`HeldOutLoss.read`.

        Args:
            feature_sums: (n, h, 2), the tiles' Fourier sums on the held-out frequencies.
            weight_sums: (n,), sums of the weights.
            targets: of the image.
        """
        loss = self._loss(feature_sums, weight_sums, targets, None)
        return torch.cat([loss.mean(0, keepdim=True), self.bank.per_bandwidth(loss)])

    @torch.no_grad()
    def _held_out(self, problems: Sequence[MatchingProblem], tiles: Sequence[Tensor]) -> list[Tensor]:
        pixels = [image.float() / 255 for image in tiles]
        weights = self._weights(problems, pixels)
        sums = self._sums(problems, pixels, weights, None)
        return [
            self.held_out_loss(s, w.sum((1, 2)), problem.targets)
            for s, w, problem in zip(sums, weights, problems, strict=True)
        ]

    def _calls(self, problems: Sequence[MatchingProblem]) -> list[slice]:
        return list(self.batches.slices([len(problem.start) for problem in problems]))

    @torch.no_grad()
    def _weights(self, problems: Sequence[MatchingProblem], pixels: Sequence[Tensor]) -> list[Tensor]:
        """Weights of each image's local features, (n, positions, positions): what the real side would give them."""
        if all(problem.weighting.uniform for problem in problems):
            return [self.weights_of(image, problem.weighting) for image, problem in zip(pixels, problems, strict=True)]
        joined = torch.cat([image.detach() for image in pixels])
        maps = [self._hardness(joined[call]) for call in self._calls(problems)]
        by_image = torch.cat(maps).split([len(image) for image in pixels])
        return [problem.weighting(values) for problem, values in zip(problems, by_image, strict=True)]

    def _hardness(self, tiles: Tensor) -> Tensor:
        padded, kind = self.batches.pad(tiles), self.loss.hardness
        maps = None
        if kind != "gradient":
            maps = self.reader.features_and_difficulty(padded)[1]
        return self.reader.centres(hardness_map(kind, maps, padded))[: len(tiles)]

    @torch.no_grad()
    def weights_of(self, tiles: Tensor, weighting: Weighting) -> Tensor:
        """Weights (n, positions, positions) of the local features of tiles in [0, 1], (n <= batch size, 3, p, p)."""
        if weighting.uniform:
            return torch.ones(len(tiles), self.reader.positions, self.reader.positions, device=tiles.device)
        return weighting(self._hardness(tiles))

    def _sums(
        self,
        problems: Sequence[MatchingProblem],
        pixels: Sequence[Tensor],
        weights: Sequence[Tensor],
        index: int | None,
    ) -> list[Tensor]:
        """Weighted sums of Fourier features for each image, (n, m, 2): of set ``index``, or held out for None."""
        bank = self.bank
        directions = bank.held_out if index is None else bank.directions[index]
        counts = [len(image) for image in pixels]
        joined, joined_weights = torch.cat(list(pixels)), torch.cat(list(weights))
        mean = torch.cat([problem.mean.expand(count, -1) for problem, count in zip(problems, counts, strict=True)])
        std = torch.cat([problem.std.expand(count, -1) for problem, count in zip(problems, counts, strict=True)])

        def call(part: slice) -> Tensor:
            tiles, weight, centre = (self.batches.pad(t[part]) for t in (joined, joined_weights, mean))
            spread = self.batches.pad(std[part]).clamp_min(ABSOLUTE_FLOOR)  # no division by the zeros of the padding
            features = standardise(self.reader.features(tiles), centre, spread)
            return fourier_sums(features, directions, weight, bank.bandwidths)[: part.stop - part.start]

        kept = self.kept_calls if torch.is_grad_enabled() else math.inf
        sums = [
            call(part) if index < kept else checkpoint(call, part, use_reentrant=False, preserve_rng_state=False)
            for index, part in enumerate(self._calls(problems))
        ]
        return list(torch.cat(sums).split(counts))


def _better(start: Tensor, end: Tensor, before: HeldOutLoss, after: HeldOutLoss) -> Matched:
    if after.total < before.total:
        return Matched(end, before, after, kept_start=False)
    # If the optimisation diverged, the start is kept.
    return Matched(start, before, after if math.isfinite(after.total) else before, kept_start=True)


def calls_are_independent(reader: FeatureReader, bank: FrequencyBank, batch_size: int) -> bool:
    """Whether a tile's features, Fourier sums and gradient are the same bits at any place of a call.

    True where convolutions are computed one sample at a time; where it is not, images must not share calls.
    """
    device = bank.held_out.device
    random = torch.Generator().manual_seed(0)
    side = reader.positions

    def result(place: int) -> list[Tensor]:
        tiles = torch.rand(batch_size, 3, reader.tile, reader.tile, generator=random).to(device)
        weights = torch.rand(batch_size, side, side, generator=random).to(device)
        tiles[place], weights[place] = tile, weight
        tiles.requires_grad_()
        sums = fourier_sums(reader.features(tiles), bank.directions[0], weights, bank.bandwidths)
        sums.square().sum().backward()
        assert tiles.grad is not None
        return [sums[place].detach(), tiles.grad[place], reader.upscale(tiles.detach())[place]]

    tile = torch.rand(3, reader.tile, reader.tile, generator=random).to(device)
    weight = torch.rand(side, side, generator=random).to(device)
    first = result(0)
    return all(
        all(torch.equal(a, b) for a, b in zip(first, result(place), strict=True))
        for place in {1, batch_size // 2, batch_size - 1}
    )
