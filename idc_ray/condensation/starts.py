"""Initial tiles of the matching, which matter more than its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from idc_ray.condensation.cells import cell_side, mosaic
from idc_ray.condensation.groups import balanced_groups, spread_centres
from idc_ray.condensation.seeding import generator
from idc_ray.condensation.targets import RealImage
from idc_ray.condensation.transfer import to_device
from idc_ray.condensation.windows import candidate_positions, choose, cut, window_means

Start = tuple[Tensor, list[tuple[int, int] | None]]
"""uint8 tiles (n, 3, p, p) and where each was cut from: (top, left) in LR pixels, None if from no one place."""


def hardest_windows(hardness: Tensor, size: int, count: int) -> Tensor:
    """(count, 2) positions of the windows of largest mean difficulty, on a stride of a quarter window."""
    positions = candidate_positions(hardness.shape[0], hardness.shape[1], size, max(1, size // 4))
    order = window_means(hardness, positions, size).argsort(descending=True, stable=True)
    return positions[choose(order.tolist(), positions, size, count)]


def random_windows(height: int, width: int, size: int, count: int, random: torch.Generator) -> Tensor:
    """(count, 2) positions of windows drawn uniformly, on a stride of a quarter window."""
    positions = candidate_positions(height, width, size, max(1, size // 4))
    order = torch.randperm(len(positions), generator=random)
    return positions[choose(order.tolist(), positions, size, count)]


def crop_start(lr: Tensor, positions: Tensor, size: int) -> Start:
    """Start from real crops at (n, 2) positions of an image (3, H, W)."""
    return cut(lr, positions, size), [(top, left) for top, left in positions.tolist()]


def packed_start(lr: Tensor, hardness: Tensor, size: int, count: int, blend: int) -> Start:
    """Each tile is a :func:`mosaic` of four smaller hard crops; the hardest are dealt out evenly."""
    cells = hardest_windows(hardness, cell_side(size, 2), 4 * count)
    dealt = to_device(cells.view(4, count, 2).transpose(0, 1), lr.device)
    return mosaic(lr.new_zeros(count, 3, size, size), lr, dealt, blend), [None] * count


def noise_start(lr: Tensor, size: int, count: int, random: torch.Generator) -> Start:
    """Normal noise with the image's mean and standard deviation in each channel."""
    pixels = lr.flatten(1).float().cpu()
    noise = torch.randn(count, 3, size, size, generator=random)
    tiles = noise * pixels.std(1).view(3, 1, 1) + pixels.mean(1).view(3, 1, 1)
    return tiles.round().clamp(0, 255).to(torch.uint8).to(lr.device), [None] * count


def medoid_start(
    lr: Tensor, real: RealImage, frequencies: int, size: int, count: int, key: tuple[object, ...]
) -> Start:
    """For each group the real crop that is nearest to its mean; groups grow from k-means++ centres.

    Args:
        lr: uint8 (3, H, W).
        real: the measured image.
        frequencies: members of one set of the bank.
        size: p.
        count: n.
        key: seed of the centres.
    """
    points = real.embeddings(frequencies)
    shares = balanced_groups(points, real.weight_sums, spread_centres(points, real.weight_sums, count, generator(*key)))
    means = (shares.T @ points) / shares.sum(0).unsqueeze(1)
    distance = torch.cdist(means, points, compute_mode="donot_use_mm_for_euclid_dist")
    chosen: list[int] = []
    for group in range(count):  # a crop serves one group only
        row = distance[group].clone()
        row[chosen] = torch.inf
        chosen.append(int(row.argmin()))
    return crop_start(lr, real.positions[chosen], size)
