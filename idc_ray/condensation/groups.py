"""Groups of real crops for the group level: balanced k-means in which every group has the same weight.

Students sample tiles uniformly, and tile j stands for group j; only with equal weights is what is
matched also what is trained on.
"""

from __future__ import annotations

import torch
from torch import Tensor


def spread_centres(points: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means++ centres (Arthur and Vassilvitskii 2007): (count, d) rows of ``points`` (n, d), drawn by weight."""
    chosen = [int(torch.multinomial(weights, 1, generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        chance = distance * weights
        if float(chance.sum()) <= 0:  # fewer distinct points than centres: repeat by weight
            chance = weights
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]


def _assign(cost: Tensor, weights: Tensor) -> Tensor:
    """Shares (n, g) with row sums ``weights`` and equal column sums; crops with most to lose choose first."""
    crops, groups = cost.shape
    share = [[0.0] * groups for _ in range(crops)]  # lists: item by item, tensors take ten times as long
    room = [float(weights.sum()) / groups] * groups
    preference = cost.argsort(dim=1, stable=True)
    if groups > 1:
        best_two = cost.gather(1, preference[:, :2])
        order = (best_two[:, 1] - best_two[:, 0]).argsort(descending=True, stable=True).tolist()
    else:
        order = list(range(crops))
    wanted, lists = weights.tolist(), preference.tolist()
    for crop in order:
        left = wanted[crop]
        for group in lists[crop]:
            part = min(left, room[group])
            if part > 0:
                share[crop][group] += part
                room[group] -= part
                left -= part
            if left <= 0:
                break
    return torch.tensor(share, dtype=torch.float64)


def balanced_groups(points: Tensor, weights: Tensor, centres: Tensor, rounds: int = 10) -> Tensor:
    """Split crops into groups of equal weight that are compact in ``points``; a crop may be shared by two.

    Args:
        points: (n, d) embeddings of the crops, on the CPU.
        weights: (n,) positive.
        centres: (g, d) first centres; group j grows round centre j.
        rounds: most rounds of assigning and averaging (default 10; it stops when nothing moves).

    Returns:
        float64 (n, g) not negative: the weight of each crop in each group. Rows sum to ``weights``,
        columns to ``weights.sum() / g``, both up to rounding.
    """
    points, weights, centres = points.double(), weights.double(), centres.double()
    share = torch.zeros(len(points), len(centres), dtype=torch.float64)
    for _ in range(rounds):
        cost = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        previous, share = share, _assign(cost, weights)
        if torch.equal(previous, share):
            break
        centres = (share.T @ points) / share.sum(0).unsqueeze(1).clamp_min(1e-300)
    return share
