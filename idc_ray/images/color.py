"""Embedded ICC profiles: which colours an image has, and its pixels as sRGB."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from idc_ray.redact import printable

#: sRGB: sRGB pixels, or pixels that state no colours; keep: as stored.
Colors = Literal["srgb", "keep"]

#: Grey levels by which profiles that are sRGB differ: programs round its curve and its primaries differently.
SAME = 2
#: Characters of a profile's name that are kept.
NAME = 60

_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # Pillow's, by the header's colour space (ICC.1, 7.2.6)
_RAMP = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class ColorProfile:
    """An embedded profile.

    Attributes:
        note: its name if pixels are converted, ``ignored: ...`` if it cannot be used, else None.
        mode: Pillow's mode of the pixels that it is of: RGB, L or CMYK.
        transform: to sRGB; None where pixels stay as they are.
    """

    note: str | None = None
    mode: str = "RGB"
    transform: ImageCms.ImageCmsTransform | None = None

    def to_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Convert uint8 (H, W, 3) of RGB, or of grey in three equal channels."""
        if self.transform is None:
            return pixels
        if self.mode == "L":
            grey: NDArray[np.uint8] = np.asarray(self.transform.apply(Image.fromarray(_RAMP[None])))[0, :, 1]
            return grey[pixels]
        return np.asarray(self.transform.apply(Image.fromarray(pixels)))


def has_tables(profile: object) -> bool:
    """Whether a profile has more than a few numbers and curves: parsing it may need much time and memory."""
    if not isinstance(profile, bytes) or len(profile) < 132:
        return False
    count = min(100, struct.unpack_from(">I", profile, 128)[0])  # littleCMS reads no more
    return any(profile[begin : begin + 3] in (b"A2B", b"D2B") for begin in range(132, 132 + 12 * count, 12))


def read_profile(profile: object, mode: str) -> ColorProfile:
    """The embedded profile of an image, as far as it can be used.

    A profile that is damaged, or of another kind of pixels than the image's, is ignored, as viewers do: the image is
    good. Profiles that are sRGB change no pixel.

    Args:
        profile: the bytes, or None.
        mode: Pillow's mode of the image.
    """
    if not isinstance(profile, bytes):
        return ColorProfile()
    return _read(profile, "CMYK" if mode == "CMYK" else "L" if mode[0] in "1LI" else "RGB")


@lru_cache(16)  # most images of an input have one of a few
def _read(profile: bytes, wanted: str) -> ColorProfile:
    space = profile[16:20]
    mode = _MODES.get(space)
    if mode != wanted:
        kind = f"of {mode or printable(space.decode('latin-1')).strip()} pixels" if len(profile) > 128 else "damaged"
        return ColorProfile(f"ignored: {kind}")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = printable(ImageCms.getProfileDescription(source).strip())[:NAME] or "unnamed"
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # Of grey, littleCMS would interpolate the curve between few points.
            ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0),
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, ImportError):  # of a Pillow without littleCMS the last
        return ColorProfile("ignored: damaged")
    converted = ColorProfile(name, mode, transform)
    if mode == "CMYK":
        return converted
    probe = _probe() if mode == "RGB" else np.repeat(_RAMP[None, :, None], 3, axis=2)
    change = np.abs(converted.to_srgb(probe).astype(np.int16) - probe).max()
    return ColorProfile() if change <= SAME else converted


def _probe() -> NDArray[np.uint8]:
    """Colours and greys from all over the cube, uint8 (1, 985, 3)."""
    side = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(-1, 3)
    return np.concatenate([colors, np.repeat(_RAMP[:, None], 3, axis=1)])[None]
