"""The one way in which real crops, synthetic tiles and labels pass through the teacher."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from idc_ray.condensation.difficulty import difficulty


class Labeler(Protocol):
    """What condensation needs of a network that only gives labels; :class:`idc_ray.models.Upscaler` has it."""

    scale: int

    def upscale(self, lr: Tensor) -> Tensor: ...


class Teacher(Labeler, Protocol):
    """What condensation needs of a teacher; :class:`idc_ray.models.Teacher` has it."""

    channels: int

    def features(self, lr: Tensor) -> Tensor: ...

    def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]: ...


def upscale_tiles(network: Labeler, tiles: Tensor, autocast: torch.dtype | None = None) -> Tensor:
    """(B, 3, p, p) in [0, 1] to float32 (B, 3, scale p, scale p), clamped to [0, 1]: the rule for all labels.

    Of the tile as it is. A student trained on patches sees them end where they end, as the teacher was trained
    to; reflected tiles made worse students, crops of the upscaled image none that were better (docs/method.md).
    """
    with _precision(autocast, tiles.device):
        return network.upscale(tiles).float().clamp(0, 1)


def _precision(autocast: torch.dtype | None, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where a network runs in ``autocast``, or in its own precision for None."""
    return contextlib.nullcontext() if autocast is None else torch.autocast(device.type, autocast)


@dataclass(frozen=True)
class FeatureReader:
    """Computes features of reflection-padded tiles, and outputs for tiles.

    A teacher's features depend on where a tile ends, so real crops and synthetic tiles are treated alike: the
    tile is padded by ``padding`` reflected pixels, and the features of the whole tile are kept. If the features
    of a margin were dropped instead, the optimiser would add noise there to change the features further inside.

    Attributes:
        teacher: the network.
        tile: side p of all tiles, LR pixels.
        padding: LR pixels of reflection at each border, less than p.
        kernel: side k of the local features.
        autocast: dtype of autocast for the teacher; None: no autocast.
        lock: held while the teacher is called, where several threads use it: networks may keep state during a call.
    """

    teacher: Teacher
    tile: int
    padding: int
    kernel: int
    autocast: torch.dtype | None = None
    lock: contextlib.AbstractContextManager[object] = field(default_factory=contextlib.nullcontext, compare=False)

    @property
    def positions(self) -> int:
        """Side of the map of local features: each needs its whole neighbourhood inside the tile."""
        return self.tile - self.kernel + 1

    def features(self, tiles: Tensor) -> Tensor:
        """(B, 3, p, p) in [0, 1] to float32 (B, c, p, p); differentiable."""
        with self.lock, _precision(self.autocast, tiles.device):
            return self._inside(self.teacher.features(_reflect(tiles, self.padding))).float()

    @torch.no_grad()
    def features_and_difficulty(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`features` and the difficulty (B, p, p) of every pixel, of the same reflected tiles in one pass."""
        reflected = _reflect(tiles, self.padding)
        with self.lock, _precision(self.autocast, tiles.device):
            maps, upscaled = self.teacher.features_and_upscale(reflected)
        values = difficulty(reflected, upscaled.float().clamp(0, 1), self.teacher.scale)
        return self._inside(maps).float(), self._inside(values)

    def _inside(self, maps: Tensor) -> Tensor:
        """Without the reflected border."""
        end = maps.shape[-1] - self.padding
        return maps[..., self.padding : end, self.padding : end]

    def upscale(self, tiles: Tensor, network: Labeler | None = None) -> Tensor:
        """Output of the teacher, or of another network, by :func:`upscale_tiles`."""
        with self.lock:
            return upscale_tiles(network or self.teacher, tiles, self.autocast)

    def centres(self, maps: Tensor) -> Tensor:
        """A map over whole tiles (..., p, p) at the centres of the local features, (..., positions, positions)."""
        inside = slice(self.kernel // 2, self.kernel // 2 + self.positions)
        return maps[..., inside, inside]


class GlobalFeatureReader(FeatureReader):
    """One feature of a whole tile, the mean over its positions, in place of local ones; ``kernel`` is 1."""

    @property
    def positions(self) -> int:
        return 1

    def features(self, tiles: Tensor) -> Tensor:
        """(B, 3, p, p) in [0, 1] to float32 (B, c, 1, 1); differentiable."""
        return super().features(tiles).mean((-2, -1), keepdim=True)

    def features_and_difficulty(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`features` and the difficulty (B, p, p) of every pixel."""
        maps, values = super().features_and_difficulty(tiles)
        return maps.mean((-2, -1), keepdim=True), values

    def centres(self, maps: Tensor) -> Tensor:
        """The mean of a map over whole tiles: (..., p, p) to (..., 1, 1)."""
        return maps.mean((-2, -1), keepdim=True)


def check_finite(values: Tensor) -> None:
    """Refuse what was computed from an output that is not finite: NaN would rank anyhow, and be black in a label.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not bool(values.isfinite().all()):
        raise ValueError("the teacher's output for this image is not finite; check the teacher, or use float32")


def _reflect(tiles: Tensor, padding: int) -> Tensor:
    """Reflection without repeating the border pixel. Torch's own has no deterministic gradient on GPUs."""
    if padding == 0:
        return tiles
    for dim in (-2, -1):
        length = tiles.shape[dim]
        before = tiles.narrow(dim, 1, padding).flip(dim)
        after = tiles.narrow(dim, length - 1 - padding, padding).flip(dim)
        tiles = torch.cat([before, tiles, after], dim)
    return tiles
