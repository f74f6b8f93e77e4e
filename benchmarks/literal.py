"""Two literal implementations of the paper's method, as reference for timing.

At every step both draw new frequencies, pass all N real crops through the teacher and project their local features, do
the same for the synthetic tiles, compare, and update. They differ in the projection of local features on frequencies:
by convolution, or by unfolding every neighbourhood. The loss (levels, groups, weights), the tile geometry and the
teacher are those of idc_ray; a test checks that loss and gradient equal those of
:class:`idc_ray.condensation.matching.TileMatcher` for equal frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from idc_ray.condensation.characteristic import discrepancy
from idc_ray.condensation.difficulty import Weighting, hardness_map
from idc_ray.condensation.targets import standardise
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.condensation.tile_adam import TileAdam
from idc_ray.condensation.windows import candidate_positions, cut
from idc_ray.config import Loss, Optimizer

__all__ = ["PROJECTIONS", "LiteralImage", "LiteralMatcher", "Projection", "by_convolution", "by_unfolding"]

Projection = Callable[[Tensor, Tensor], Tensor]
"""Phases t.u (B, m, positions) from features (B, c, H, W) and frequencies (m, c, k, k)."""


def by_convolution(features: Tensor, frequencies: Tensor) -> Tensor:
    return F.conv2d(features, frequencies).flatten(2)


def by_unfolding(features: Tensor, frequencies: Tensor) -> Tensor:
    local_features = F.unfold(features, frequencies.shape[-1])  # (B, c k k, positions)
    return frequencies.flatten(1) @ local_features


PROJECTIONS: dict[str, Projection] = {"convolution": by_convolution, "unfold": by_unfolding}


@dataclass(frozen=True)
class LiteralImage:
    """The data of a real image that does not depend on frequencies.

    Attributes:
        crops: (N, 3, p, p) in [0, 1].
        weights: (N, positions, positions), 0 where an earlier crop already covers the position.
        shares: float64 (N, g), mass of each crop in each group.
        mean: (c,) mean of the teacher's features.
        std: (c,) standard deviation of the teacher's features.
        weighting: maps hardness to weights, for the synthetic tiles.
    """

    crops: Tensor
    weights: Tensor
    shares: Tensor
    mean: Tensor
    std: Tensor
    weighting: Weighting

    @classmethod
    def cut_from(
        cls,
        reader: FeatureReader,
        lr: Tensor,
        hardness: Tensor,
        shares: Tensor,
        mean: Tensor,
        std: Tensor,
        weighting: Weighting,
    ) -> LiteralImage:
        """Cut uint8 (3, H, W) into crops and weigh their positions by a hardness map (H, W)."""
        size, side, half = reader.tile, reader.positions, reader.kernel // 2
        positions = candidate_positions(lr.shape[1], lr.shape[2], size, size)
        seen = torch.zeros(lr.shape[1:], dtype=torch.bool)
        weights = torch.zeros(len(positions), side, side)
        for crop, (top, left) in enumerate(positions.tolist()):
            area = (slice(top + half, top + half + side), slice(left + half, left + half + side))
            weights[crop] = weighting(hardness[area]) * ~seen[area]
            seen[area] = True
        return cls(cut(lr, positions, size).float() / 255, weights, shares, mean, std, weighting)


class LiteralMatcher:
    """Optimises one image's tiles as described in the paper.

    Args:
        reader: the teacher and the tile geometry.
        project: projection of local features on frequencies.
        loss: levels and discrepancy.
        optimizer: Adam's settings.
        batch: number of tiles per teacher call; all crops at once would need gigabytes.
    """

    def __init__(
        self, reader: FeatureReader, project: Projection, loss: Loss, optimizer: Optimizer, batch: int
    ) -> None:
        self.reader, self.project, self.settings, self.optimizer, self.batch = reader, project, loss, optimizer, batch

    def loss(self, image: LiteralImage, tiles: Tensor, weights: Tensor, frequencies: Tensor) -> Tensor:
        """Loss of tiles (n, 3, p, p) in [0, 1] with weights (n, positions, positions) of their local features."""
        with torch.no_grad():
            real = self._sums(image, image.crops, image.weights, frequencies).double()
        crop_mass = image.weights.double().sum((1, 2))
        shares = image.shares / crop_mass.clamp_min(1e-300).unsqueeze(1)
        real_image = (real.sum(0) / crop_mass.sum()).float()
        real_groups = (torch.einsum("ng,nmz->gmz", shares, real) / image.shares.sum(0)[:, None, None]).float()

        tile_sums, tile_mass = self._sums(image, tiles, weights, frequencies), weights.sum((1, 2))
        kind, alpha, beta = self.settings.discrepancy, self.settings.alpha, self.settings.beta
        whole = discrepancy(tile_sums.sum(0) / tile_mass.sum(), real_image, kind, alpha, beta)
        groups = discrepancy(tile_sums / tile_mass[:, None, None], real_groups, kind, alpha, beta).mean()
        return self.settings.instance * whole + self.settings.group * groups

    def _sums(self, image: LiteralImage, tiles: Tensor, weights: Tensor, frequencies: Tensor) -> Tensor:
        """Weighted sums (n, m, 2) over positions of cos and sin of all phases."""
        sums = []
        for part, weight in zip(tiles.split(self.batch), weights.split(self.batch), strict=True):
            features = standardise(self.reader.features(part), image.mean, image.std)
            phases = self.project(features, frequencies)
            column = weight.flatten(1).unsqueeze(-1)
            sums.append(torch.cat([phases.cos() @ column, phases.sin() @ column], -1))
        return torch.cat(sums)

    @torch.no_grad()
    def weights(self, image: LiteralImage, tiles: Tensor) -> Tensor:
        """Weights (n, positions, positions) of the local features of tiles."""
        if image.weighting.uniform:
            return torch.ones(len(tiles), self.reader.positions, self.reader.positions)
        maps = [self.reader.features_and_difficulty(part)[1] for part in tiles.split(self.batch)]
        hardness = hardness_map(self.settings.hardness, torch.cat(maps), tiles)
        return image.weighting(self.reader.centres(hardness))

    def steps(
        self, image: LiteralImage, start: Tensor, iterations: int, draw: Callable[[int], Tensor]
    ) -> Iterator[Tensor]:
        """Optimise tiles, one step for each item of the iterator.

        Args:
            image: the real image.
            start: initial tiles, uint8 (n, 3, p, p).
            iterations: number of steps of the whole optimisation.
            draw: returns the frequencies (m, c, k, k) of a step.

        Yields:
            After each step the tiles, uint8 (n, 3, p, p).
        """
        pixels = (start.float() / 255).requires_grad_()
        adam = TileAdam([pixels], self.optimizer.betas)
        for step in range(iterations):
            if step % self.optimizer.weight_refresh == 0:
                weights = self.weights(image, pixels.detach())
            adam.zero_grad()
            self.loss(image, pixels, weights, draw(step)).backward()
            adam.step(self.optimizer.learning_rate * 0.5 * (1 + math.cos(math.pi * step / iterations)))
            with torch.no_grad():
                pixels.clamp_(0, 1)
            yield pixels.detach().mul(255).round().to(torch.uint8)
