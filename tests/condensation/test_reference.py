"""The default method by its words, slowly, in double precision: the same tiles come out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idc_ray.condensation.cells import NOWHERE, mosaic
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.difficulty import bicubic_upscale
from idc_ray.condensation.groups import balanced_groups
from idc_ray.condensation.tasks import ImageTask
from idc_ray.images.tiles import crop_starts
from idc_ray.models.teacher import Teacher
from tests.condensation.conftest import as_tensor, literal_gradient, picture, small_config

P, PADDING, KERNEL, SIDE = 16, 2, 3, 8
Corner = tuple[int, int]


class Reference:
    """One image, uint8 (3, H, W); all local features and frequencies one by one."""

    def __init__(self, teacher: Teacher, frequencies: Tensor, lr: Tensor) -> None:
        self.teacher, self.frequencies, self.lr = teacher, frequencies.flatten(1).double(), lr
        self.hardness = F.pad(torch.from_numpy(literal_gradient(lr.numpy().astype(np.float32) / 255)), (1,) * 4)
        self.crops = self.corners(P, P)
        self.maps = {corner: self.network(corner) for corner in self.crops}
        self.local = self.each_once()
        centres = torch.stack([self.vector(*place, standardised=False)[:, 1, 1] for place in self.local.values()])
        self.mean, self.std = centres.mean(0), centres.std(0, correction=0)
        hard = torch.stack([self.hardness[place] for place in self.local])
        relative = (hard / hard.mean() + 0.01) ** 2
        self.weights = dict(
            zip(self.local, relative.clamp_max(relative.sort().values[int(0.99 * len(hard))]), strict=True)
        )

    def corners(self, size: int, stride: int) -> list[Corner]:
        return list(itertools.product(*(crop_starts(length, size, stride) for length in self.lr.shape[1:])))

    @torch.no_grad()
    def network(self, corner: Corner) -> tuple[Tensor, Tensor]:
        """Features (c, p, p) and difficulty (p, p) of a reflected crop."""
        top, left = corner
        crop = self.lr[None, :, top : top + P, left : left + P].float() / 255
        reflected = F.pad(crop, (PADDING,) * 4, mode="reflect")
        error = (self.teacher.upscale(reflected) - bicubic_upscale(reflected, 2)).abs().mean(1)
        inside = slice(PADDING, PADDING + P)
        features = self.teacher.features(reflected)[0].double()
        return features[:, inside, inside], F.avg_pool2d(error, 2)[0, inside, inside].double()

    def each_once(self) -> dict[Corner, tuple[Corner, int, int]]:
        """Centre of each local feature in the image to the first crop that has it, and where in it."""
        found: dict[Corner, tuple[Corner, int, int]] = {}
        for corner, y, x in itertools.product(self.crops, range(P - 2), range(P - 2)):
            found.setdefault((corner[0] + y + 1, corner[1] + x + 1), (corner, y, x))
        return found

    def vector(self, corner: Corner, y: int, x: int, standardised: bool = True) -> Tensor:
        vector = self.maps[corner][0][:, y : y + KERNEL, x : x + KERNEL]
        return (vector - self.mean[:, None, None]) / self.std[:, None, None] if standardised else vector

    def waves(self, places: list[tuple[Corner, int, int]]) -> Tensor:
        """(n, m, 2): cos and sin of each local feature at each frequency."""
        phases = torch.stack([self.vector(*place).flatten() for place in places]) @ self.frequencies.T
        return torch.stack([phases.cos(), phases.sin()], -1)

    def starts(self, count: int) -> list[Corner]:
        difficulties = torch.zeros(self.lr.shape[1:], dtype=torch.float64)
        for (top, left), (_, values) in self.maps.items():
            difficulties[top : top + P, left : left + P] = values
        windows = self.corners(P, P // 4)
        means = [-float(difficulties[top : top + P, left : left + P].mean()) for top, left in windows]
        taken: list[Corner] = []
        for index in np.argsort(means, kind="stable"):
            if not any(overlap(windows[index], other, P) for other in taken):
                taken.append(windows[index])
        return taken[:count]

    def tiles(self, count: int) -> Tensor:
        """uint8 (count, 3, p, p): after the exchange of cells."""
        starts = self.starts(count)
        self.maps |= {corner: self.network(corner) for corner in starts}
        everywhere = list(itertools.product(range(P - 2), range(P - 2)))
        weights = torch.stack(list(self.weights.values()))
        terms = self.waves(list(self.local.values())) * weights[:, None, None]
        crop_of = torch.tensor([self.crops.index(corner) for corner, _, _ in self.local.values()])
        crop_weights = torch.zeros(len(self.crops), dtype=torch.float64).index_add_(0, crop_of, weights)
        crop_sums = torch.zeros(len(self.crops), *terms.shape[1:], dtype=torch.float64).index_add_(0, crop_of, terms)
        begin = torch.stack([self.waves([(corner, y, x) for y, x in everywhere]).mean(0) for corner in starts])
        shares = balanced_groups((crop_sums / crop_weights[:, None, None]).flatten(1), crop_weights, begin.flatten(1))
        image = terms.sum(0) / weights.sum()
        fractions = (shares / crop_weights[:, None]).T
        groups = torch.einsum("gn,nmz->gmz", fractions, crop_sums) / shares.sum(0)[:, None, None]

        def cell(corner: Corner, top: int, left: int) -> Tensor:
            inside = itertools.product(range(top, top + SIDE - 2), range(left, left + SIDE - 2))
            return self.waves([(corner, y, x) for y, x in inside]).sum(0)

        offered: dict[Corner, Tensor] = {}
        steps = list(itertools.product(crop_starts(P, SIDE, SIDE // 4), repeat=2))
        for (top, left), (y, x) in itertools.product(self.crops, steps):
            if (top + y, left + x) not in offered:
                offered[top + y, left + x] = cell((top, left), y, x)
        quarters = list(itertools.product((0, SIDE), repeat=2))
        own = [[cell(corner, *quarter) for quarter in quarters] for corner in starts]
        places: list[list[Corner | None]] = [[None] * 4 for _ in starts]

        def where(tile: int, index: int) -> Corner:
            return places[tile][index] or (starts[tile][0] + quarters[index][0], starts[tile][1] + quarters[index][1])

        def function(cells: list[Tensor]) -> Tensor:
            return torch.stack(cells).sum(0) / (len(cells) * (SIDE - 2) ** 2)

        def loss() -> float:
            features = [
                [own[t][i] if (place := places[t][i]) is None else offered[place] for i in range(4)]
                for t in range(len(starts))
            ]
            whole = (function([each for row in features for each in row]) - image).square().sum(-1).mean()
            by_tile = [
                (function(cells) - goal).square().sum(-1).mean() for cells, goal in zip(features, groups, strict=True)
            ]
            return float(whole + torch.stack(by_tile).mean())

        for _, index, tile in itertools.product(range(3), range(4), range(len(starts))):
            others = [where(t, i) for t in range(len(starts)) for i in range(4) if (t, i) != (tile, index)]
            options: list[Corner | None] = [
                place for place in offered if not any(overlap(place, other, SIDE) for other in others)
            ]
            if places[tile][index] is None or not any(
                overlap((starts[tile][0] + quarters[index][0], starts[tile][1] + quarters[index][1]), other, SIDE)
                for other in others
            ):
                options.append(None)
            losses = []
            for place in options:
                places[tile][index] = place
                losses.append(loss())
            places[tile][index] = options[int(np.argmin(losses))]
        out = []
        for (top, left), row in zip(starts, places, strict=True):
            positions = torch.tensor([(NOWHERE, NOWHERE) if place is None else place for place in row])
            out.append(mosaic(self.lr[:, top : top + P, left : left + P], self.lr, positions, 4))
        return torch.stack(out)


def overlap(a: Corner, b: Corner, size: int) -> bool:
    return abs(a[0] - b[0]) < size and abs(a[1] - b[1]) < size


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exchanged_tiles_are_those_of_the_method_taken_literally(teacher: Teacher, seed: int) -> None:
    """The whole real side, the start, groups, cells and the search at once: an error of any shows in a tile."""
    condenser = Condenser(teacher, small_config(matching="cells", ratio=0.2), torch.device("cpu"))
    lr = picture(41, 52, seed)
    _, problem = condenser._prepare(ImageTask("0" * 16, lr))
    assert problem is not None and problem.exchanged is not None
    expected = Reference(teacher, condenser.bank.sets[0], as_tensor(lr)).tiles(len(problem.start))
    assert torch.equal(problem.exchanged, expected)
    assert not torch.equal(problem.exchanged, problem.start)
