"""What the synthetic tiles of one image are matched to, computed once.

The teacher is frozen and the bank of frequencies fixed, so the real side never changes: it is
measured in two passes over the image's crops (statistics, then projections) and never touched again.
The second pass takes the teacher's features from the first as far as they fit into a fixed amount of memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idc_ray.condensation.difficulty import Weighting, difficulty
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.rlff import FrequencyBank, fourier_sums
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.condensation.windows import candidate_positions, cut

__all__ = ["RealImage", "RealTargets", "difficulty_map", "measure_image", "real_features", "standardise"]

#: Least standard deviation of a channel, relative to the largest of the image and absolute: flat channels stay finite.
RELATIVE_FLOOR, ABSOLUTE_FLOOR = 1e-3, 1e-5

#: Features of real crops kept from the first pass to the second; of more, the rest is computed twice.
#: A 2K image at scale 2 has 104 MB with the bundled teacher.
KEPT_BYTES = 256 * 2**20


def standardise(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Features (B, c, h, w) with the real image's statistics, (c,) or one row for each tile (B, c)."""
    return (features - mean[..., None, None]) / std[..., None, None]


@dataclass(frozen=True)
class RealImage:
    """One image measured on the real side.

    Attributes:
        mean: (c,) of the teacher's features.
        std: (c,) likewise, floored.
        weighting: from difficulty to weight.
        positions: (n, 2) crops.
        masses: (n,) float64, sum of the weights of the positions that the crop is the first to cover.
        sums: (n, B m + h, 2), weighted sums of the Fourier features: all sets, then the held-out one.
        sets: B, number of sets.
        crops: the features that all this was computed from.
    """

    mean: Tensor
    std: Tensor
    weighting: Weighting
    positions: Tensor
    masses: Tensor
    sums: Tensor
    sets: int
    crops: Crops

    def targets(self, shares: Tensor) -> RealTargets:
        """Characteristic functions of the image and of its groups.

        Args:
            shares: (n, g) mass of each crop in each group, as :func:`balanced_groups` gives it.
        """
        fraction = (shares / self.masses.unsqueeze(1).clamp_min(1e-300)).to(self.sums.device)
        flat = self.sums.flatten(1).double()
        groups = (fraction.T @ flat) / shares.sum(0).unsqueeze(1).to(flat.device)
        image = flat.sum(0) / float(self.masses.sum())
        return RealTargets(*(t.float().unflatten(-1, (-1, 2)) for t in (image, groups)), sets=self.sets)  # type: ignore[misc]

    def embeddings(self, frequencies: int) -> Tensor:
        """(n, 2 m) characteristic functions of the crops on the first set, on the CPU: what groups are made of."""
        mass = self.masses.unsqueeze(1).clamp_min(1e-12)
        return self.sums[:, :frequencies].cpu().double().flatten(1) / mass


@dataclass(frozen=True)
class RealTargets:
    """Characteristic functions of an image (B m + h, 2) and of its groups (g, B m + h, 2)."""

    image: Tensor
    groups: Tensor
    sets: int

    def at(self, index: int | None, frequencies: int) -> tuple[Tensor, Tensor]:
        """Those of set ``index`` (of ``frequencies`` members), or of the held-out set for None."""
        end = self.image.shape[0] if index is None else (index + 1) * frequencies
        return self.image[end - frequencies : end], self.groups[:, end - frequencies : end]


def _coverage(starts: list[int], reader: FeatureReader) -> Tensor:
    """(n, positions) 0/1: which positions of each crop no earlier crop has covered, in one dimension."""
    mask = torch.ones(len(starts), reader.positions)
    for i in range(1, len(starts)):
        overlap = starts[i - 1] + reader.positions - starts[i]
        mask[i, : max(0, overlap)] = 0
    return mask


def _crop_coverage(positions: Tensor, reader: FeatureReader) -> Tensor:
    """(n, positions, positions) 0/1: each local feature of the image counts once, however crops overlap."""
    tops, row = positions[:, 0].unique(return_inverse=True)
    lefts, column = positions[:, 1].unique(return_inverse=True)
    down, across = _coverage(tops.tolist(), reader), _coverage(lefts.tolist(), reader)
    return down[row].unsqueeze(2) * across[column].unsqueeze(1)


def _to_unit(tiles: Tensor) -> Tensor:
    return tiles.float().div(255)


@torch.no_grad()
def difficulty_map(reader: FeatureReader, lr: Tensor, batches: FixedBatches) -> Tensor:
    """Difficulty of every LR pixel of an image.

    Args:
        reader: the teacher and the tile geometry.
        lr: uint8 (3, H, W), at least one tile large.
        batches: division of the crops into network calls.

    Returns:
        float32 (H, W) on the CPU.
    """
    size, scale = reader.tile, reader.teacher.scale
    positions = candidate_positions(lr.shape[1], lr.shape[2], size, size)

    def measure(tiles: Tensor) -> Tensor:
        tiles = _to_unit(tiles)
        return difficulty(tiles, reader.upscale(tiles), scale)

    out = torch.empty(lr.shape[1:])
    maps = batches.run(measure, cut(lr, positions, size)).cpu()
    for (top, left), values in zip(positions.tolist(), maps, strict=True):
        out[top : top + size, left : left + size] = values
    return out


class Crops:
    """Features of an image's crops, call by call; what fits into ``KEPT_BYTES`` is computed once and kept.

    Args:
        reader: the teacher and the tile geometry.
        lr: uint8 (3, H, W).
        positions: (n, 2) crops.
        batches: division of the crops into network calls.
        teacher_cache: features of all calls, if they are known; see :func:`real_features`.
    """

    def __init__(
        self,
        reader: FeatureReader,
        lr: Tensor,
        positions: Tensor,
        batches: FixedBatches,
        teacher_cache: Sequence[NDArray[np.float32]] = (),
    ) -> None:
        self.reader, self.lr, self.positions, self.batches = reader, lr, positions, batches
        self.teacher_cache = teacher_cache
        self.calls = list(batches.slices([len(positions)]))
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT_BYTES

    def features(self, call: slice) -> Tensor:
        """(n, c, p, p): those of the crops of one of ``calls``, padding after them."""
        if call.start in self._kept:
            return self._kept[call.start]
        if self.teacher_cache:
            return torch.tensor(self.teacher_cache[call.start // self.batches.size], device=self.lr.device)
        crops = cut(self.lr, self.positions[call], self.reader.tile)
        # Contiguous: a view would keep the reflected border alive with it.
        maps = self.reader.features(_to_unit(self.batches.pad(crops))).contiguous()
        if maps.nbytes <= self._room:
            self._room -= maps.nbytes
            self._kept[call.start] = maps
        return maps


@torch.no_grad()
def real_features(reader: FeatureReader, lr: Tensor, batches: FixedBatches) -> tuple[Tensor, ...]:
    """The teacher's features of an image's crops, uint8 (3, H, W): for each call (n, c, p, p), padding last."""
    crops = Crops(reader, lr, candidate_positions(lr.shape[1], lr.shape[2], reader.tile, reader.tile), batches)
    return tuple(crops.features(call) for call in crops.calls)


@torch.no_grad()
def _channel_statistics(crops: Crops, coverage: Tensor) -> tuple[Tensor, Tensor]:
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    for call in crops.calls:
        maps = crops.features(call)[: call.stop - call.start]
        centres = crops.reader.centres(maps).double()
        seen = coverage[call].unsqueeze(1).to(maps.device)
        total = total + (centres * seen).sum((0, 2, 3))
        squares = squares + (centres.square() * seen).sum((0, 2, 3))
    count = float(coverage.sum())
    mean = torch.as_tensor(total) / count
    std = (torch.as_tensor(squares) / count - mean.square()).clamp_min(0).sqrt()
    floor = max(RELATIVE_FLOOR * float(std.max()), ABSOLUTE_FLOOR)
    return mean.float(), std.clamp_min(floor).float()


@torch.no_grad()
def measure_image(
    reader: FeatureReader,
    bank: FrequencyBank,
    lr: Tensor,
    hardness: Tensor,
    batches: FixedBatches,
    gamma: float,
    weight_floor: float,
    clip_percentile: float,
    teacher_cache: Sequence[NDArray[np.float32]] = (),
) -> RealImage:
    """Measure an image's real side.

    Crops start every p pixels, the last flush with the border; each local feature counts once.

    Args:
        reader: the teacher and the tile geometry.
        bank: the run's frequencies, on the teacher's device.
        lr: uint8 (3, H, W) on the teacher's device, at least one tile large.
        hardness: (H, W), what places weigh by (any finite values if gamma is 0).
        batches: division of the crops into network calls.
        gamma: exponent of the weights.
        weight_floor: see :class:`Weighting`.
        clip_percentile: see :class:`Weighting`.
        teacher_cache: what :func:`real_features` gave for this image; empty: features are computed.

    Raises:
        ValueError: the teacher's features are not finite.
    """
    positions = candidate_positions(lr.shape[1], lr.shape[2], reader.tile, reader.tile)
    coverage = _crop_coverage(positions, reader)
    hard = reader.centres(cut(hardness[None], positions, reader.tile).squeeze(1))
    weighting = Weighting.fit(hard[coverage > 0], gamma, weight_floor, clip_percentile)
    weights = weighting(hard) * coverage
    crops = Crops(reader, lr, positions, batches, teacher_cache)
    mean, std = _channel_statistics(crops, coverage)
    sums = []
    for call in crops.calls:
        chosen = batches.pad(weights[call]).to(lr.device)
        features = standardise(crops.features(call), mean, std)
        by_set = [fourier_sums(features, directions, chosen, bank.scales) for directions in bank.directions]
        by_set.append(fourier_sums(features, bank.held_out, chosen))
        sums.append(torch.cat(by_set, dim=1)[: call.stop - call.start])
    joined = torch.cat(sums)
    if not bool(joined.isfinite().all()):
        raise ValueError("the teacher's features of this image are not finite; check the teacher, or use float32")
    return RealImage(mean, std, weighting, positions, weights.double().sum((1, 2)), joined, len(bank.directions), crops)
