"""The network given by ``--model``, as a function of 8-bit images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.config.upscale import UpscaleConfig
from idc_ray.errors import BadRequest
from idc_ray.evaluation.upscaling import OnTile, image_upscale
from idc_ray.images import resize
from idc_ray.images.names import read_bytes
from idc_ray.locate import locate
from idc_ray.models import bundled_teacher_bytes, load_upscaler, teacher_sha256
from idc_ray.pipeline.device import find_device

#: Default scale of ``bundled`` and ``bicubic``.
DEFAULT_SCALE = 2

#: Side, in LR pixels, of the crop that is timed when images are not cut into tiles.
TIMED_SIDE = 256

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Network:
    """A network ready for use.

    Attributes:
        upscale: uint8 (h, w, 3) to uint8 (scale h, scale w, 3).
        scale: upscaling factor.
        sha256: of the checkpoint's content, hexadecimal, or ``bicubic``.
        device: where it runs.
    """

    upscale: Callable[[Image], Image]
    scale: int
    sha256: str
    device: str


def open_network(config: EvaluateConfig | UpscaleConfig, on_tile: OnTile | None = None) -> Network:
    """Load the network of a configuration; the result applies tiling and self-ensemble if configured.

    ``bundled`` and ``bicubic`` are reserved names; for a file of that name write ``./bicubic``.

    Args:
        config: model, scale (None: the checkpoint's), device, tile, tile_overlap, self_ensemble.
        on_tile: called before each tile.

    Raises:
        BadRequest: the checkpoint cannot be used, there is no such device, the overlap is not less than the tile, or
            ``bicubic`` is combined with settings of networks.
    """
    if config.model == "bicubic":
        _refuse_settings_of_networks(config)
        scale = config.scale or DEFAULT_SCALE
        return Network(lambda lr: resize.upscale(lr, scale), scale, "bicubic", "cpu")
    if config.tile is not None and config.tile_overlap >= config.tile:
        raise BadRequest(
            f"--tile-overlap is {config.tile_overlap}; expected less than --tile {config.tile}, such as "
            f"{config.tile // 8}"
        )
    wanted = DEFAULT_SCALE if config.model == "bundled" and config.scale is None else config.scale
    data, name = read_checkpoint(config.model, wanted, "--model")
    network = load_upscaler(data, scale=wanted, device=find_device(config.device, "--device"), name=name)
    upscale = image_upscale(
        network.upscale_image_float, network.scale, config.tile, config.tile_overlap, config.self_ensemble, on_tile
    )
    return Network(upscale, network.scale, teacher_sha256(data), str(network.device))


def cost_per_pixel(config: EvaluateConfig | UpscaleConfig, network: Network, image: Image) -> tuple[float, Image]:
    """Seconds for each LR pixel, timed on a crop of an image, and the upscaled crop."""
    side = config.tile or TIMED_SIDE
    part = np.ascontiguousarray(image[:side, :side])
    network.upscale(part[:32, :32])  # the first pass is slower
    begin = time.perf_counter()
    picture = network.upscale(part)
    seconds = (time.perf_counter() - begin) / (part.shape[0] * part.shape[1])
    if config.tile is not None and max(image.shape[:2]) > config.tile:
        seconds *= (config.tile / (config.tile - config.tile_overlap)) ** 2  # overlaps are computed twice
    return seconds, picture


def _refuse_settings_of_networks(config: EvaluateConfig | UpscaleConfig) -> None:
    given = config.model_fields_set
    ignored = [
        name.replace("_", "-")
        for name, useless in (("tile", config.tile is not None), ("self_ensemble", config.self_ensemble),
                              ("device", config.device not in ("auto", "cpu")))
        if useless and name in given
    ]  # fmt: skip
    if ignored:
        raise BadRequest(
            f"--{' and --'.join(ignored)} cannot be used with --model bicubic; leave it out, or give a network"
        )


def read_checkpoint(model: str, scale: int | None, setting: str) -> tuple[bytes, str]:
    """Content and name of a checkpoint; for a file named ``bundled`` write ``./bundled``.

    Args:
        model: a path, a URI, or ``bundled``.
        scale: of the bundled network.
        setting: the setting with ``model``, for messages.

    Raises:
        BadRequest: it cannot be read, or no network is bundled for the scale.
    """
    if model != "bundled":
        return read_bytes(model, setting), locate(model).path.rpartition("/")[2]
    if scale is None:
        raise BadRequest(f"{setting} is 'bundled', which exists for x2 and x4; give scale=2 or scale=4")
    return bundled_teacher_bytes(scale, setting), "the bundled teacher"
