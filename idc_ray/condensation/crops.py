"""The crops that an image is measured in, and the teacher's output for them."""

from __future__ import annotations

import torch
from torch import Tensor

from idc_ray.condensation.difficulty import Weighting
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.tasks import TeacherCache
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.condensation.transfer import to_device, to_host
from idc_ray.condensation.windows import candidate_positions, cut

#: Least standard deviation of a channel, relative to the largest of the image and absolute: flat channels stay finite.
RELATIVE_FLOOR, ABSOLUTE_FLOOR = 1e-3, 1e-5

#: Features of real crops kept from the first pass to the second; of more, the rest is computed twice.
#: A 2K image at scale 2 has 104 MB with the bundled teacher.
KEPT_BYTES = 256 * 2**20


def difficulty_map(reader: FeatureReader, lr: Tensor, batches: FixedBatches) -> Tensor:
    """Difficulty of every pixel of an image, see :meth:`Crops.difficulties`."""
    return Crops(reader, lr, batches).difficulties()


class Crops:
    """An image cut into crops of a tile's size, and the teacher's output for them, computed when it is asked for.

    Crops start every p pixels, the last ones flush with the border. Of their features, what fits into ``KEPT_BYTES`` is
    computed once and kept; its contribution to the image's statistics is, of every crop.

    Args:
        reader: the teacher and the tile geometry.
        lr: uint8 (3, H, W) on the teacher's device, at least one tile large.
        batches: division of the crops into network calls.
        cache: measurements of this image by :meth:`difficulties` and :meth:`features`, which are then not repeated.

    Attributes:
        positions: (n, 2), top and left of each crop.
        coverage: (n, positions, positions) 0/1: each local feature of the image counts once, in the first crop with it.
        calls: the crops of each network call.
    """

    def __init__(
        self, reader: FeatureReader, lr: Tensor, batches: FixedBatches, cache: TeacherCache | None = None
    ) -> None:
        self.reader, self.lr, self.batches, self.cache = reader, lr, batches, cache
        self.positions = candidate_positions(lr.shape[1], lr.shape[2], reader.tile, reader.tile)
        self.coverage = _crop_coverage(self.positions, reader)
        self.calls = list(batches.slices([len(self.positions)]))
        self._seen = to_device(self.coverage.unsqueeze(1), lr.device)
        self._kept: dict[int, Tensor] = {}
        self._moments: dict[int, Tensor] = {}
        self._room = KEPT_BYTES

    @torch.no_grad()
    def difficulties(self) -> Tensor:
        """Difficulty of every pixel of the image, float32 (H, W) on the CPU: of the last crop that holds the pixel."""
        if self.cache:
            return torch.tensor(self.cache.difficulties)
        size, out, found = self.reader.tile, torch.empty(self.lr.shape[1:]), []
        for call in self.calls:
            maps, values = self.reader.features_and_difficulty(self._tiles(call))
            self._keep(call, maps)
            found.append(values[: call.stop - call.start])
        (crops,) = to_host(torch.cat(found))
        for (top, left), crop in zip(self.positions.tolist(), crops, strict=True):
            out[top : top + size, left : left + size] = crop
        return out

    @torch.no_grad()
    def features(self, call: slice) -> Tensor:
        """(n, c, p, p): those of the crops of one of ``calls``, padding after them."""
        if call.start in self._kept:
            return self._kept[call.start]
        if self.cache and self.cache.features:
            known = self.cache.features[call.start // self.batches.size]
            return self._keep(call, to_device(torch.tensor(known), self.lr.device))
        return self._keep(call, self.reader.features(self._tiles(call)))

    @torch.no_grad()
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (c,) of the image's features, each position once; deviations are floored."""
        for call in self.calls:
            if call.start not in self._moments:
                self.features(call)
        total, squares = torch.stack([self._moments[call.start] for call in self.calls]).sum(0)
        count = float(self.coverage.sum())
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        floor = (RELATIVE_FLOOR * std.max()).clamp_min(ABSOLUTE_FLOOR)
        return mean.float(), std.maximum(floor).float()

    def at_local_features(self, image: Tensor) -> Tensor:
        """Values (n, positions, positions) of an image (H, W) at the centres of the crops' local features."""
        return self.reader.centres(cut(image[None], self.positions, self.reader.tile).squeeze(1))

    def weighting(self, hardness: Tensor, gamma: float, floor: float, clip_percentile: float) -> Weighting:
        """:meth:`Weighting.fit` to the hardness (H, W) of the image's local features, each once."""
        return Weighting.fit(self.at_local_features(hardness)[self.coverage > 0], gamma, floor, clip_percentile)

    def _tiles(self, call: slice) -> Tensor:
        return self.batches.pad(cut(self.lr, self.positions[call], self.reader.tile)).float() / 255

    def _keep(self, call: slice, maps: Tensor) -> Tensor:
        maps = maps.clone()  # a view would keep the reflected border alive with it
        if call.start not in self._moments:
            centres, seen = self.reader.centres(maps[: call.stop - call.start]).double(), self._seen[call]
            self._moments[call.start] = torch.stack([(centres**power * seen).sum((0, 2, 3)) for power in (1, 2)])
        if maps.nbytes <= self._room:
            self._room -= maps.nbytes
            self._kept[call.start] = maps
        return maps


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
