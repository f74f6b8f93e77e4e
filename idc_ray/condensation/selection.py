"""Selection baselines: real crops selected by a rule.

Each rule ranks candidate windows (stride p/4); the first that do not overlap are taken. All rules
share one signature, so adding one is adding a function to the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

import torch
from torch import Tensor

from idc_ray.condensation.crops import difficulty_map
from idc_ray.condensation.difficulty import bicubic_upscale, gradient
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.groups import balanced_groups, spread_centres
from idc_ray.condensation.seeding import generator
from idc_ray.condensation.teacher_features import FeatureReader, check_finite
from idc_ray.condensation.windows import candidate_positions, choose, cut, window_means

#: Share of the candidates with the largest loss that ``loss`` drops: the teacher fails there on noise and moire.
DROPPED_HARDEST = 0.05


@dataclass(frozen=True)
class SelectionTask:
    """One image to select from.

    Attributes:
        lr: uint8 (3, H, W) on the teacher's device.
        hr: uint8 (3, scale H, scale W) on the teacher's device; only for rules in ``NEEDS_HR``.
        key: (seed, image id), which seeds random rules.
    """

    lr: Tensor
    hr: Tensor | None
    key: tuple[object, ...]


#: Clusters that ``dcsr_like`` takes from in turn.
CLUSTERS = 8

Rule = Callable[[SelectionTask, FeatureReader, FixedBatches, Tensor], Iterable[int]]
"""(task, reader, batches, candidate positions) to candidate indices, best first; greedy rules yield them one by one."""

R = TypeVar("R", bound=Rule)

SELECTORS: dict[str, Rule] = {}


def _rule(function: R) -> R:
    SELECTORS[function.__name__] = function
    return function


def _by_map(score: Tensor, positions: Tensor, size: int) -> list[int]:
    check_finite(score)  # NaN would be ranked, and make the integral image NaN
    order: list[int] = window_means(score, positions, size).argsort(descending=True, stable=True).tolist()
    return order


@_rule
def random(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> list[int]:
    """Uniformly at random."""
    order: list[int] = torch.randperm(len(positions), generator=generator(*task.key, "random selection")).tolist()
    return order


@_rule
def hardest(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> list[int]:
    """Largest difference of the teacher to bicubic interpolation; needs no HR."""
    return _by_map(difficulty_map(reader, task.lr, batches), positions, reader.tile)


@_rule
def sobel(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> list[int]:
    """Largest mean gradient of the luma, by Sobel's operator."""
    return _by_map(gradient(task.lr[None].float().cpu())[0], positions, reader.tile)


@_rule
def psnr_bicubic(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> list[int]:
    """Lowest PSNR of bicubic interpolation against the real HR: the hardest to interpolate."""
    interpolated = bicubic_upscale(task.lr[None].float() / 255, reader.teacher.scale)[0] * 255
    return _by_map(_pooled((interpolated - _real(task)).square(), reader.teacher.scale), positions, reader.tile)


@_rule
def loss(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> list[int]:
    """Largest L1 loss of the teacher against the real HR, without the top 5 %."""
    upscaled = _upscale_image(reader, task.lr, batches).mul(255)
    order = _by_map(_pooled((upscaled - _real(task).cpu()).abs(), reader.teacher.scale), positions, reader.tile)
    dropped = int(len(order) * DROPPED_HARDEST)
    return order[dropped:] + order[:dropped]  # last, not gone: a budget of all candidates can still be met


@_rule
def kcenter(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> Iterator[int]:
    """Greedy k-centre (Sener and Savarese 2018) on each window's mean and deviation of the teacher's features."""
    points = _window_features(task.lr, reader, batches, positions)
    chosen = int((points - points.mean(0)).square().sum(1).argmin())
    distance = points.new_full((len(points),), torch.inf)
    for _ in range(len(points)):
        yield chosen
        distance = torch.minimum(distance, (points - points[chosen]).square().sum(1))
        distance[chosen] = -1.0
        chosen = int(distance.argmax())


@_rule
def herding(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> Iterator[int]:
    """Greedy herding (Welling 2009): keeps the mean of the selection close to the mean of all windows."""
    points = _window_features(task.lr, reader, batches, positions)
    goal, total = points.mean(0), torch.zeros_like(points[0])
    free = torch.ones(len(points), dtype=torch.bool)
    for count in range(1, len(points) + 1):
        distance = ((total + points) / count - goal).square().sum(1).masked_fill(~free, torch.inf)
        chosen = int(distance.argmin())
        yield chosen
        total += points[chosen]
        free[chosen] = False


@_rule
def dcsr_like(task: SelectionTask, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> list[int]:
    """After DCSR: the half with the largest gradients, taken in turn from clusters of the teacher's features."""
    by_gradient = sobel(task, reader, batches, positions)
    half = by_gradient[: max(1, len(by_gradient) // 2)]
    points = _window_features(task.lr, reader, batches, positions[half])
    random = generator(*task.key, "dcsr_like")
    weights = torch.ones(len(half), dtype=torch.float64)
    centres = spread_centres(points, weights, min(CLUSTERS, len(half)), random)
    members: list[list[int]] = [[] for _ in centres]
    cluster = balanced_groups(points, weights, centres).argmax(1).tolist()
    for index in torch.randperm(len(half), generator=random).tolist():
        members[cluster[index]].append(half[index])
    in_turn = [index for round_ in zip_longest(*members) for index in round_ if index is not None]
    return in_turn + by_gradient[len(half) :]


def select(
    method: str, task: SelectionTask, reader: FeatureReader, batches: FixedBatches, count: int
) -> list[tuple[int, int]]:
    """Positions (top, left) of the ``count`` tiles that ``method`` selects from an image.

    Raises:
        KeyError: no rule of that name.
        ValueError: the rule compares with the real HR image and the task has none.
    """
    size = reader.tile
    positions = candidate_positions(task.lr.shape[1], task.lr.shape[2], size, max(1, size // 4))
    order = SELECTORS[method](task, reader, batches, positions)
    return [(top, left) for top, left in positions[choose(order, positions, size, count)].tolist()]


def _real(task: SelectionTask) -> Tensor:
    if task.hr is None:
        raise ValueError("this method compares with the real HR image, which the task does not have")
    return task.hr.float()


def _pooled(error: Tensor, scale: int) -> Tensor:
    """(3, scale H, scale W) to (H, W) on the CPU."""
    return torch.nn.functional.avg_pool2d(error.mean(0)[None, None], scale)[0, 0].cpu()


@torch.no_grad()
def _upscale_image(reader: FeatureReader, lr: Tensor, batches: FixedBatches) -> Tensor:
    """The teacher's output for a whole image, tile by tile: (3, scale H, scale W), on the CPU."""
    size, scale = reader.tile, reader.teacher.scale
    positions = candidate_positions(lr.shape[1], lr.shape[2], size, size)
    out = torch.empty(3, scale * lr.shape[1], scale * lr.shape[2])
    for part in batches.slices([len(positions)]):
        tiles = batches.run(lambda x: reader.upscale(x.float() / 255), cut(lr, positions[part], size))
        for (top, left), tile in zip((positions[part] * scale).tolist(), tiles.cpu(), strict=True):
            out[:, top : top + scale * size, left : left + scale * size] = tile
    return out


@torch.no_grad()
def _window_features(lr: Tensor, reader: FeatureReader, batches: FixedBatches, positions: Tensor) -> Tensor:
    """(n, 2 c) float64: mean and standard deviation of each channel over each window, channels standardised.

    Windows of one height share the teacher's features of the strip that they lie in: a fourth of its calls is left.
    """
    size = reader.tile
    described = torch.empty(0)
    for top in positions[:, 0].unique().tolist():
        row = positions[:, 0] == top
        lefts = positions[row] * torch.tensor([0, 1])
        strip = _strip_features(lr[:, top : top + size], reader, batches).double()
        mean = window_means(strip, lefts, size)
        spread = (window_means(strip.square(), lefts, size) - mean.square()).clamp_min(0).sqrt()
        if not len(described):
            described = torch.empty(len(positions), 2 * len(strip), dtype=torch.float64)
        described[row] = torch.cat([mean, spread]).T
    check_finite(described)
    return (described - described.mean(0)) / described.std(0, correction=0).clamp_min(1e-9)


def _strip_features(strip: Tensor, reader: FeatureReader, batches: FixedBatches) -> Tensor:
    """The teacher's features (c, p, W) of a strip (3, p, W) as high as a tile, tile by tile, on the CPU."""
    size = reader.tile
    positions = candidate_positions(size, strip.shape[2], size, size)
    maps = batches.run(lambda x: reader.features(x.float() / 255), cut(strip, positions, size)).cpu()
    out = maps.new_empty(maps.shape[1], size, strip.shape[2])
    for (_, left), values in zip(positions.tolist(), maps, strict=True):
        out[:, :, left : left + size] = values
    return out
