"""Pillow's pixel modes to 8-bit RGB, and EXIF's orientations to upright; the rules are in ``read.decode_image``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from idc_ray.errors import RejectedImage
from idc_ray.images.color import ColorProfile

_PLAIN = frozenset(("1", "L", "P", "RGB", "CMYK", "YCbCr"))
_ALPHA = frozenset(("LA", "La", "PA", "RGBA", "RGBa"))
_DEEP_GREY = frozenset(("I;16", "I;16L", "I;16B"))
_SCALED = ("PPM", "PNG")  # readers whose mode "I" holds 0 to 65535


def check_mode(image: Image.Image) -> None:
    """Refuse pixels that :func:`to_rgb` has no rule for, before they are decoded.

    Raises:
        RejectedImage: ``unsupported_pixels``.
    """
    known = _PLAIN | _ALPHA | _DEEP_GREY
    if image.mode not in known and not (image.mode == "I" and image.format in _SCALED):
        raise RejectedImage(
            "unsupported_pixels",
            f"{image.format or 'Pillow'} pixels of mode {image.mode!r} (Pillow's name) are not supported; "
            "save the image as 8-bit RGB",
        )


def to_rgb(image: Image.Image, grey_bits: int, inverted: bool, profile: ColorProfile) -> NDArray[np.uint8]:
    """A loaded image, or a part of one, as uint8 (H, W, 3).

    Args:
        image: of a mode that :func:`check_mode` lets pass.
        grey_bits: significant bits of grey pixels of more than 8 bits.
        inverted: 0 is white in such pixels (Pillow itself turns those of 8 bits).
        profile: the image's.
    """
    if profile.mode == "CMYK" and profile.transform is not None:
        return np.asarray(profile.transform.apply(image))
    if image.mode in _ALPHA or (image.mode in _PLAIN and "transparency" in image.info):
        rgb = np.asarray(_over_white(image))
    elif image.mode in _PLAIN:
        rgb = np.asarray(image.convert("RGB"))
    else:
        rgb = _deep_grey(np.asarray(image), grey_bits, inverted)
    return profile.to_srgb(rgb)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # premultiplied grey has no direct way to RGBA
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _deep_grey(values: NDArray[np.integer], bits: int, inverted: bool) -> NDArray[np.uint8]:
    grey = (values >> (bits - 8)).astype(np.uint8)
    return np.repeat((255 - grey if inverted else grey)[..., None], 3, axis=2)


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo EXIF orientation 2 to 8 (EXIF 2.3, tag 0x0112); any other value means upright already."""
    if orientation in (5, 6, 7, 8):  # stored with rows and columns exchanged
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
