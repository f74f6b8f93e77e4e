from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from idc_ray.images import encode_png
from idc_ray.store.png import check_png

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)


def png_of(side: int = 12, pixels: bytes | None = None, form: tuple[int, ...] = (8, 2, 0, 0, 0)) -> bytes:
    """A PNG from its parts, all checksums right."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = pixels if pixels is not None else bytes(side * (1 + 3 * side))
    header = struct.pack(">IIBBBBB", side, side, *form)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_tiles_as_they_are_written_pass() -> None:
    check_png(encode_png(PICTURE), 12)
    check_png(encode_png(np.zeros((1, 1, 3), np.uint8)), 1)
    check_png(png_of(), 12)


def test_every_flipped_byte_is_found() -> None:
    data = encode_png(PICTURE)
    random = np.random.default_rng(1)
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= int(random.integers(1, 256))
        with pytest.raises(ValueError, match="PNG"):
            check_png(bytes(flipped), 12)


@pytest.mark.parametrize("length", [0, 7, 8, 20, 33, 40, -12, -1])
def test_a_truncated_one_is_found(length: int) -> None:
    with pytest.raises(ValueError, match="PNG"):
        check_png(encode_png(PICTURE)[:length], 12)


def test_right_checksums_around_wrong_pixels_are_found() -> None:
    """Catches a check of chunks alone, and memory for what unpacks to gigabytes."""
    row = 1 + 3 * 12
    for pixels in (bytes(11 * row), bytes(13 * row), bytes(2**24), bytes([7]) + bytes(12 * row - 1)):
        with pytest.raises(ValueError, match="pixels are not"):
            check_png(png_of(pixels=pixels), 12)
    with pytest.raises(ValueError, match="12 x 12.*expected 13 x 13"):
        check_png(png_of(), 13)
    for form in ((16, 2, 0, 0, 0), (8, 0, 0, 0, 0), (8, 2, 0, 0, 1)):
        with pytest.raises(ValueError, match="form"):
            check_png(png_of(form=form), 12)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_pixels_than_rgb_are_refused(mode: str) -> None:
    """Readers of tiles refuse them too."""
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(buffer, "PNG")
    with pytest.raises(ValueError, match="form"):
        check_png(buffer.getvalue(), 12)
