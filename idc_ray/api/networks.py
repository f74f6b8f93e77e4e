"""Loading networks from checkpoints, and upscaling images with them."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray

from idc_ray.api.arrays import ImageLike, as_rgb
from idc_ray.api.settings import Path
from idc_ray.api.state import preserved
from idc_ray.errors import BadRequest
from idc_ray.evaluation.network import read_checkpoint
from idc_ray.evaluation.upscaling import image_upscale
from idc_ray.models import Upscaler, load_upscaler
from idc_ray.pipeline.device import find_device


def load_model(checkpoint: Path, scale: int | None = None, device: str | torch.device = "auto") -> Upscaler:
    """Load a super-resolution network.

    Args:
        checkpoint: a checkpoint of :func:`idc_ray.train`, a public EDSR or MambaIRv2-light, or any that spandrel
            supports; local or in an object store. ``bundled``: the small EDSR of this package. Weights are never
            unpickled.
        scale: expected upscaling factor; None: the checkpoint's.
        device: such as ``cpu`` or ``cuda:1``; ``auto``: the GPU if there is one.

    Returns:
        The network in evaluation mode with frozen parameters. It has ``model`` (the ``torch.nn.Module``, which maps RGB
        (B, 3, h, w) in [0, 1] to (B, 3, scale h, scale w)), ``scale``, ``device``, ``name``, and ``upscale``, which
        accepts images of any size.

    Raises:
        BadRequest: the checkpoint cannot be read, is not an RGB super-resolution network or has another scale, no
            network is bundled for the scale, or the device cannot be used.

    Example:
        >>> import idc_ray
        >>> idc_ray.load_model("bundled", scale=4, device="cpu")
        Upscaler(the bundled teacher, x4, cpu)
    """
    with preserved():
        data, name = read_checkpoint(os.fspath(checkpoint), scale, "checkpoint")
        return load_upscaler(data, scale=scale, device=find_device(device), name=name)


def upscale(
    model: Upscaler,
    image: ImageLike,
    *,
    tile: int | None = None,
    tile_overlap: int = 16,
    ensemble: bool = False,
) -> NDArray[np.uint8]:
    """Upscale an image.

    Args:
        model: a network from :func:`load_model`.
        image: a PIL image, uint8 (h, w, 3), or a tensor (3, h, w), uint8 or floating point in [0, 1]; RGB.
        tile: upscale in overlapping tiles of this side, in pixels of ``image``, so that memory does not grow with the
            image; None: the whole image at once.
        tile_overlap: pixels that neighbouring tiles share, in [0, tile).
        ensemble: average the outputs for the eight flips and rotations, which takes eight times as long.

    Returns:
        uint8 (scale h, scale w, 3), RGB.

    Raises:
        BadRequest: the image has a wrong type, shape or range, or ``tile_overlap`` is out of range.

    Example:
        >>> import idc_ray
        >>> from PIL import Image
        >>> model = idc_ray.load_model("bundled", scale=2)
        >>> small = Image.open("photos/chelsea.png").resize((120, 80))
        >>> large = idc_ray.upscale(model, small)
        >>> large.shape, large.dtype
        ((160, 240, 3), dtype('uint8'))
        >>> Image.fromarray(large).save("large.png")
    """
    if not isinstance(model, Upscaler):
        raise BadRequest(f"model is a {type(model).__name__}; expected a network from idc_ray.load_model")
    if tile is not None and not 0 <= tile_overlap < tile:
        raise BadRequest(f"tile_overlap is {tile_overlap}; expected at least 0 and less than tile, {tile}")
    return image_upscale(model.upscale_image_float, model.scale, tile, tile_overlap, ensemble)(as_rgb(image))
