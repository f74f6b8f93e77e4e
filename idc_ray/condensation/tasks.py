"""What goes into a condenser and what comes out. Without torch: readers of images need it, and no network."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from idc_ray.config import CondenseConfig
from idc_ray.images import encode_png

#: Rules that compare with the real HR image, whatever labels the run stores.
NEEDS_HR = frozenset({"psnr_bicubic", "loss"})


@dataclass(frozen=True)
class TeacherCache:
    """Measurements of one image, reusable by runs with the same feature network, tile size and batch size.

    Attributes:
        difficulties: float32 (H, W), of each LR pixel.
        features: of each teacher call over the real crops, float32 (n, c, p, p); empty: not kept.
    """

    difficulties: NDArray[np.float32]
    features: tuple[NDArray[np.float32], ...] = ()


@dataclass(frozen=True)
class ImageTask:
    """One image to condense.

    Attributes:
        image_id: seeds everything random about the image.
        lr: uint8 (H, W, 3), at least one tile large.
        hr: uint8 (scale H, scale W, 3), where :func:`needs_hr` asks for it.
        teacher_cache: spares measuring it again; the result is the same bits.
        tiles: how many it gets; None: what the configuration says of the image alone, at least one, or more for a
            harder image.
    """

    image_id: str
    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8] | None = None
    teacher_cache: TeacherCache | None = None
    tiles: int | None = None


@dataclass(frozen=True)
class Condensed:
    """What became of one image.

    Attributes:
        lr_tiles: uint8 (n, p, p, 3).
        hr_tiles: uint8 (n, scale p, scale p, 3); None with ``store.tiles: lr``.
        corners: (top, left) in LR pixels of the chosen crop or of the start; None if from no one place.
        candidates: how many whole tiles the image holds.
        loss_start: held-out loss of the start; None for methods that choose, and for no tiles.
        loss_end: held-out loss of the optimised tiles after rounding; may be above ``loss_start``, see ``kept_start``.
        bandwidth_start: held-out loss of the start at each bandwidth.
        bandwidth_end: held-out loss of the optimised tiles at each bandwidth.
        kept_start: the optimised tiles were no better, the start was kept; None if nothing was optimised.
        seconds: time by stage; stages done for several images together are shared equally.
    """

    lr_tiles: NDArray[np.uint8]
    hr_tiles: NDArray[np.uint8] | None
    corners: list[tuple[int, int] | None]
    candidates: int
    loss_start: float | None = None
    loss_end: float | None = None
    bandwidth_start: list[float] = field(default_factory=list)
    bandwidth_end: list[float] = field(default_factory=list)
    kept_start: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def needs_hr(config: CondenseConfig) -> bool:
    """Whether a run's method or HR tiles need real HR images."""
    return config.real_hr or config.method in NEEDS_HR


def stored_tiles(config: CondenseConfig, result: Condensed) -> list[tuple[bytes | None, bytes | None]]:
    """PNGs of the LR and HR tiles; None for those that the run does not store."""
    return [
        (
            None if config.store.tiles == "hr" else encode_png(lr),
            None if result.hr_tiles is None else encode_png(result.hr_tiles[index]),
        )
        for index, lr in enumerate(result.lr_tiles)
    ]
