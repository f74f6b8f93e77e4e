"""Files that are made to keep their reader busy: without a limit each takes many seconds, or never ends."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from idc_ray.errors import RejectedImage
from idc_ray.images.limits import MAX_SCANS
from idc_ray.images.read import decode_rgb

LIMIT = 100_000_000


def saved(image: Image.Image, name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan, of no bits, is repeated."""
    data = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xc4") : -2]
    return data[:-2] + scan * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def jpeg_fill(size: int) -> bytes:
    data = saved(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"\xff\x00" * (size // 2) + data[2:]


def jpeg_segments(count: int) -> bytes:
    data = saved(Image.new("L", (8, 8)), "JPEG")
    return data[:2] + b"\xff\xfe\0\2" * count + data[2:]


def png_chunks(count: int) -> bytes:
    data = saved(Image.new("L", (8, 8)), "PNG")
    empty = bytes(4) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    return data[:33] + empty * count + data[33:]


def gif_blocks(size: int) -> bytes:
    data = saved(Image.new("L", (8, 8)), "GIF")
    at = data.index(b",")
    return data[:at] + b"!\xfe" + b"\1x" * (size // 2) + b"\0" + data[at:]


def tiff_pages(count: int) -> bytes:
    """Each page has one tag, its width."""
    page = 2 + 12 + 4
    pages = [struct.pack("<HHHII", 1, 256, 4, 1, 8) + struct.pack("<I", 8 + page * (i + 1)) for i in range(count)]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(pages)[:-4] + bytes(4)


def tiff_tags(count: int, size: int) -> bytes:
    """Tags that all refer to the same bytes."""
    start = 8 + 2 + 12 * count + 4
    tags = b"".join(struct.pack("<HHII", 40_000 + i, 7, size, start) for i in range(count))
    return b"II*\0" + struct.pack("<IH", 8, count) + tags + bytes(4) + bytes(size)


def cost_of(data: bytes) -> tuple[RejectedImage, float]:
    begin = time.process_time()
    with pytest.raises(RejectedImage) as caught:
        decode_rgb(data, LIMIT)
    return caught.value, time.process_time() - begin


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (scans(3000, 2000), "scans"),
        (jpeg_fill(3_000_000), "reads"),
        (jpeg_segments(700_000), "reads"),
        (png_chunks(1_000_001), "chunks"),
        (gif_blocks(3_000_000), "reads"),
        (b"P4\n#" + b"x" * 2_000_000 + b"\n8 8\n" + bytes(8), "reads"),
    ],
    ids=["scans", "fill", "segments", "chunks", "blocks", "comment"],
)
def test_a_file_that_keeps_its_reader_busy_is_refused_by_a_count(data: bytes, word: str) -> None:
    """Catches a reader that one file of a few megabytes holds for minutes."""
    error, seconds = cost_of(data)
    assert error.code == "decompression_bomb"
    assert word in error.reason
    assert seconds < 10


def test_a_tiff_of_very_many_pages_is_refused_as_one_of_several() -> None:
    error, seconds = cost_of(tiff_pages(100_000))
    assert error.code in ("animated", "corrupt")
    assert seconds < 3


def test_a_tiff_of_tiny_pages_is_refused_with_the_limit() -> None:
    frames = [Image.new("L", (8, 8), i) for i in range(70)]
    error, _ = cost_of(saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert error.code == "animated"
    assert "over 64 pages" in error.reason


def test_tags_that_share_their_bytes_cost_little_memory() -> None:
    """Catches a TIFF of 1 MB whose 500 tags unpack to 500 MB."""
    data = tiff_tags(500, 1_000_000)
    tracemalloc.start()
    cost_of(data)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_honest_files_are_far_from_the_limits() -> None:
    """Every scan that libjpeg writes, pictures and thumbnails behind each other."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3)).astype(np.uint8))
    expected = np.asarray(noise)
    progressive = saved(noise, "JPEG", progressive=True, exif=b"Exif\0\0" + bytes(60_000))
    assert progressive.count(b"\xff\xda") < MAX_SCANS / 5
    assert decode_rgb(progressive + scans(90) + scans(90), LIMIT).shape == (600, 800, 3)
    assert np.array_equal(decode_rgb(saved(noise, "PNG"), LIMIT), expected)
    assert decode_rgb(scans(MAX_SCANS), LIMIT).shape == (64, 64, 3)


def test_scans_behind_the_end_of_a_picture_do_not_count() -> None:
    """Catches a phone's JPEG that is refused for the pictures appended to it."""
    data = saved(Image.new("RGB", (64, 64)), "JPEG")
    assert decode_rgb(data + scans(90) * 3, LIMIT).shape == (64, 64, 3)
