"""What the synthetic tiles of one image are matched to, computed once.

The teacher is frozen and the bank of frequencies fixed, so the real side never changes. One pass of the teacher over
the image's crops gives their difficulty and features; the features give the image's statistics, and then, standardised
by those, the Fourier sums of crops and of cells. Between the two they are kept as far as they fit into a fixed amount
of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from idc_ray.condensation.cells import CellGrid, Cells
from idc_ray.condensation.crops import Crops
from idc_ray.condensation.difficulty import Weighting
from idc_ray.condensation.rlff import FrequencyBank, fourier_products, fourier_sums
from idc_ray.condensation.transfer import to_device, to_host


def standardise(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Features (B, c, h, w) with the real image's statistics, (c,) or one row for each tile (B, c)."""
    return (features - mean[..., None, None]) / std[..., None, None]


@dataclass(frozen=True)
class RealImage:
    """One image measured on the real side.

    Attributes:
        mean: (c,) mean of the teacher's features.
        std: (c,) standard deviation of the teacher's features, floored.
        weighting: from difficulty to weight.
        positions: (n, 2) crops.
        weight_sums: (n,) float64, sum of the weights of the positions that the crop is the first to cover.
        feature_sums: (n, B m + h, 2), weighted sums of the Fourier features: all sets, then the held-out one.
        sets: B, number of sets.
    """

    mean: Tensor
    std: Tensor
    weighting: Weighting
    positions: Tensor
    weight_sums: Tensor
    feature_sums: Tensor
    sets: int

    def targets(self, shares: Tensor) -> RealTargets:
        """Characteristic functions of the image and of its groups.

        Args:
            shares: (n, g) weight of each crop in each group, as :func:`balanced_groups` gives it.
        """
        device, flat = self.feature_sums.device, self.feature_sums.flatten(1).double()
        fraction = to_device(shares / self.weight_sums.unsqueeze(1).clamp_min(1e-300), device)
        groups = (fraction.T @ flat) / to_device(shares.sum(0).unsqueeze(1), device)
        image = flat.sum(0) / float(self.weight_sums.sum())
        return RealTargets(*(t.float().unflatten(-1, (-1, 2)) for t in (image, groups)), sets=self.sets)  # type: ignore[misc]

    def embeddings(self, frequencies: int) -> Tensor:
        """(n, 2 m) characteristic functions of the crops on the first set, on the CPU: what groups are made of.

        Raises:
            ValueError: the teacher's features are not finite.
        """
        (sums,) = to_host(self.feature_sums[:, :frequencies])
        if not bool(sums.isfinite().all()):
            raise ValueError("the teacher's features of this image are not finite; check the teacher, or use float32")
        return sums.double().flatten(1) / self.weight_sums.unsqueeze(1).clamp_min(1e-12)


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


@torch.no_grad()
def measure_image(
    crops: Crops, bank: FrequencyBank, hardness: Tensor, weighting: Weighting, grid: CellGrid | None = None
) -> tuple[RealImage, Cells | None]:
    """Measure an image's real side, and its cells, from the features of its crops.

    Args:
        crops: of the image.
        bank: the run's frequencies, on the teacher's device.
        hardness: (H, W), what places weigh by (any finite values if gamma is 0).
        weighting: from :meth:`Crops.weighting`.
        grid: the cells to measure as well; None: none.
    """
    weights = (weighting(crops.at_local_features(hardness)) * crops.coverage).flatten(1)
    on_device = to_device(weights, crops.lr.device)
    mean, std = crops.statistics()
    sums, cells = [], []
    for call in crops.calls:
        features = standardise(crops.features(call), mean, std)
        chosen = crops.batches.pad(on_device[call])
        columns = chosen.unsqueeze(1)
        if grid:
            columns = torch.cat([columns, grid.columns(crops.batches.pad(grid.weights[call]))], 1)
        products = fourier_products(features, bank.directions[0], columns, bank.bandwidths)
        by_position = chosen.unflatten(1, (crops.reader.positions, -1))
        by_set = [fourier_sums(features, other, by_position, bank.bandwidths) for other in bank.directions[1:]]
        held_out = fourier_sums(features, bank.held_out, by_position, bank.bandwidths)
        count = call.stop - call.start
        sums.append(torch.cat([products[:, 0], *by_set, held_out], dim=1)[:count])
        if grid:
            cells.append(grid.cells(call, products[:count, 1:], columns[:count, 1:]))
    mass = weights.double().sum(1)
    real = RealImage(mean, std, weighting, crops.positions, mass, torch.cat(sums), len(bank.directions))
    return real, Cells.join(cells) if cells else None
