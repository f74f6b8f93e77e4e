"""Checks a tile's PNG to the last byte, without an imaging library."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB = (8, 2, 0, 0, 0)  # bit depth, colour type, compression, filter method, interlacing (PNG 1.2, section 4.1.1)
_FILTERS = 5


def check_png(data: bytes, side: int) -> None:
    """Refuses what is not a whole PNG of ``side`` x ``side`` pixels in 8-bit RGB.

    Raises:
        ValueError: it is not; the message says why.
    """
    chunks = list(_chunks(data))
    kinds = [kind for kind, _ in chunks]
    if kinds[:1] != [b"IHDR"] or len(chunks[0][1]) != 13 or kinds[-1] != b"IEND":
        raise ValueError("a PNG does not begin with IHDR and end with IEND")
    width, height, *form = struct.unpack(">IIBBBBB", chunks[0][1])
    if (width, height, *form) != (side, side, *_RGB):
        raise ValueError(f"a PNG is {width} x {height}, form {form}; expected {side} x {side}, form {list(_RGB)}")
    size = side * (1 + 3 * side)
    unpacker = zlib.decompressobj()
    try:
        pixels = unpacker.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"), size + 1)
    except zlib.error as error:
        raise ValueError(f"a PNG's pixels cannot be unpacked ({error})") from error
    if len(pixels) != size or not unpacker.eof or max(pixels[:: 1 + 3 * side]) >= _FILTERS:
        raise ValueError(f"a PNG's pixels are not {size:,} bytes of filtered rows")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of each chunk, its CRC checked."""
    if not data.startswith(_SIGNATURE):
        raise ValueError("a PNG has another signature")
    at = len(_SIGNATURE)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        crc = data[at + 8 + length : at + 12 + length]
        if zlib.crc32(kind + body).to_bytes(4, "big") != crc:
            raise ValueError(f"chunk {kind!r} of a PNG is damaged")
        yield kind, body
        at += 12 + length
