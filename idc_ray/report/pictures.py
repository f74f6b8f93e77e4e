"""Pictures as ``data:`` URIs of PNG and WebP."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_KINDS = {b"\x89PNG": "png", b"RIFF": "webp"}


def data_uri(data: bytes) -> str:
    """A PNG or WebP file as a ``data:`` URI.

    Raises:
        ValueError: it is neither PNG nor WebP.
    """
    kind = _KINDS.get(data[:4])
    if kind is None:
        raise ValueError(f"an image begins with {data[:4]!r}; expected a PNG or WebP file")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def webp(image: NDArray[np.uint8], longest: int | None = None) -> bytes:
    """Encode uint8 (h, w, 3) as WebP.

    Args:
        image: the pixels.
        longest: longest side in pixels; larger images are reduced, and compression is lossy; None: lossless.
    """
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    if longest is None:
        picture.save(buffer, "WEBP", lossless=True, method=2)
    else:
        picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        picture.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float | None:
    """PSNR of two uint8 images of one shape in dB, over all channels; None if they are equal."""
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / error) if error else None
