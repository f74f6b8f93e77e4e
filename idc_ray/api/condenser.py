"""Condensing one image at a time in this process, for notebooks and pipelines."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from idc_ray.api.arrays import ImageLike, as_rgb
from idc_ray.api.settings import Path, configure, refuse
from idc_ray.api.state import preserved, repeatable_torch
from idc_ray.condensation.condenser import Condenser as BatchCondenser
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.retry import condense_each
from idc_ray.condensation.tasks import Condensed, ImageTask, needs_hr
from idc_ray.config import CondenseConfig
from idc_ray.config.condense import JOB_SETTINGS
from idc_ray.degradation import Degrade
from idc_ray.evaluation.network import read_checkpoint
from idc_ray.images.instance import cropped_to
from idc_ray.pipeline.device import find_device

#: Settings without use where one image is condensed: there are no files, no workers, and no budget to share.
WITHOUT_USE = JOB_SETTINGS | {"allocation", "clips", "color_profile", "duplicates", "store.tiles"}

#: The same where a dataset is: its images may be encoded, and there are workers.
OF_THE_JOB = {"actors.ray_address"} | {
    name
    for name in WITHOUT_USE - {"source.max_pixels", "color_profile", "store.tiles"}
    if not name.startswith("actors.")
}


@dataclass(frozen=True, repr=False)
class Tiles:
    """The condensed tiles of one image, n of side p, and their labels.

    Attributes:
        lr: uint8 (n, p, p, 3), RGB.
        hr: uint8 (n, scale p, scale p, 3), RGB.
        losses: held-out loss of the image, ``start`` before and ``end`` after matching; empty for methods that choose
            crops, and if there are no tiles. ``end`` may be above ``start`` if ``kept_start`` is True.
        corners: for each tile, (top, left) in LR pixels of the crop that it is or started from; None for a tile that
            comes from several positions.
        kept_start: True if matching did not improve on the initial tiles, which were kept; None without matching.
        image_id: the image's id, which seeds its random numbers.

    Example:
        >>> import idc_ray
        >>> import numpy as np
        >>> stripes = np.zeros((128, 192, 3), np.uint8)
        >>> stripes[:, ::7] = 255
        >>> tiles = idc_ray.Condenser.from_pretrained(tile_size=16)(stripes, ratio=0.2)
        >>> len(tiles), tiles.lr.shape, tiles.hr.dtype
        (5, (5, 16, 16, 3), dtype('uint8'))
    """

    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8]
    losses: dict[str, float]
    corners: list[tuple[int, int] | None]
    kept_start: bool | None
    image_id: str

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.lr)

    def __repr__(self) -> str:
        sides = [f"{images.shape[1]} x {images.shape[2]}" for images in (self.lr, self.hr)]
        losses = f", loss {self.losses['start']:.3g} -> {self.losses['end']:.3g}" if self.losses else ""
        return f"Tiles({len(self)}, {' -> '.join(sides)}{losses})"


class Condenser:
    """Condenses images one by one in this process, without Ray.

    Deterministic: the same image gives the same bytes in every call and, on the same kind of device, in the job
    :func:`idc_ray.condense` with the same settings, image id and number of tiles. During a call torch runs as in the
    job's workers (by default on one thread, with deterministic algorithms, without TF32); afterwards all settings of
    torch are restored. Not thread-safe, as torch's settings belong to the process.

    Create one with :meth:`from_pretrained`.

    Example:
        >>> import idc_ray
        >>> from PIL import Image
        >>> condenser = idc_ray.Condenser.from_pretrained("bundled", scale=2)
        >>> tiles = condenser(Image.open("photos/chelsea.png"), ratio=0.1)
        >>> tiles.lr.shape, tiles.hr.shape
        ((1, 48, 48, 3), (1, 96, 96, 3))
        >>> tiles.losses["end"] < tiles.losses["start"]
        True
        >>> tiles
        Tiles(1, 48 x 48 -> 96 x 96, loss ... -> ...)
    """

    def __init__(self, inner: BatchCondenser) -> None:
        self._inner = inner

    @classmethod
    def from_pretrained(
        cls, teacher: Path = "bundled", scale: int = 2, device: str | torch.device = "auto", **settings: object
    ) -> Condenser:
        """Create a condenser with a teacher.

        Args:
            teacher: checkpoint of the network that labels the tiles, local or in an object store: idc_ray's format, a
                public EDSR or MambaIRv2-light, or any that spandrel supports. ``bundled``: the small EDSR of this
                package.
            scale: super-resolution factor, 2, 3 or 4; 1: restoration.
            device: such as ``cpu`` or ``cuda:1``; ``auto``: the GPU if there is one.
            settings: settings of the method with the names of ``idc-ray condense``, nested as dictionaries:
                ``method="hardest"``, ``rlff={"num_frequencies": 512}``, ``actors={"threads": 2}``.

        Raises:
            BadRequest: an unknown setting (the message suggests a similar one), a setting of the whole job, a wrong
                type or range, a teacher that cannot be used, or no such device.
        """
        refuse(CondenseConfig, settings, WITHOUT_USE, "it is a setting of the whole job, idc_ray.condense")
        config = configure(CondenseConfig, {**settings, "scale": scale})
        chosen = find_device(device)
        data, _ = read_checkpoint(os.fspath(teacher), config.scale, "teacher")
        with preserved(), repeatable_torch(chosen, config.actors.threads):
            return cls(load_condenser(config, data, chosen))

    @property
    def config(self) -> CondenseConfig:
        """All settings."""
        return self._inner.config

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._inner.device

    def __call__(self, image: ImageLike, ratio: float | None = None, image_id: str | None = None) -> Tiles:
        """Condense one high-resolution image; its LR image is made by ``degradation`` (MATLAB-style bicubic).

        Args:
            image: a PIL image, uint8 (H, W, 3), or a tensor (3, H, W), uint8 or floating point in [0, 1]; RGB. It is
                cropped at the right and bottom to multiples of the scale.
            ratio: share of the pixels to keep, in (0, 1]; at least one tile is kept. None: the condenser's ratio.
            image_id: seeds the image's random numbers. The job's ids are ``idc_ray.images.image_id(PATH)`` of paths
                relative to the input. None: the first 16 hex digits of the SHA-256 of the pixels, so that equal images
                give equal tiles.

        Raises:
            BadRequest: the image has a wrong type, shape or range, or the ratio is out of range.
            RejectedImage: ``too_small``, the image is smaller than a tile; ``unsupported_pixels``, a PIL mode without a
                defined range or colours.
            ArithmeticError, RuntimeError, ValueError: the network's output is not finite, or there is too little
                memory.
        """
        inner = self._inner if ratio is None else self._with_ratio(ratio)
        task = image_task(as_rgb(image), image_id, inner.config)
        with repeatable_torch(inner.device, inner.config.actors.threads):
            ((result,),) = condense_each(inner, [task])
        if isinstance(result, Exception):
            raise result
        return tiles_of(task.image_id, result)

    def __repr__(self) -> str:
        config = self.config
        return f"Condenser({config.method}, x{config.scale}, ratio {config.ratio:g}, {self.device})"

    def _with_ratio(self, ratio: float) -> BatchCondenser:
        inner = copy.copy(self._inner)
        inner.config = configure(CondenseConfig, {**self.config.model_dump(), "ratio": ratio})
        return inner


def image_task(image: NDArray[np.uint8], image_id: str | None, config: CondenseConfig) -> ImageTask:
    """The task of condensing an HR image, uint8 (H, W, 3).

    Raises:
        RejectedImage: ``too_small``.
    """
    hr = cropped_to(image, config.scale, config.tile_size)
    image_id = image_id or pixels_id(image)
    return ImageTask(image_id, Degrade.of(config)(hr, config.scale, image_id), hr if needs_hr(config) else None)


def pixels_id(image: NDArray[np.uint8]) -> str:
    """Content-based id of an image, uint8 (H, W, 3): 16 hex digits of the SHA-256 of its height, width and pixels."""
    digest = hashlib.sha256(f"{image.shape[0]} {image.shape[1]} ".encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()[:16]


def tiles_of(image_id: str, result: Condensed) -> Tiles:
    """Convert a result to the API's type."""
    losses = {} if result.loss_start is None or result.loss_end is None else {
        "start": result.loss_start, "end": result.loss_end
    }  # fmt: skip
    assert result.hr_tiles is not None  # store.tiles is refused
    return Tiles(result.lr_tiles, result.hr_tiles, losses, result.corners, result.kept_start, image_id)
