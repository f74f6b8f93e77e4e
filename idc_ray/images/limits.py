"""What the decoding of one image may cost, in numbers that do not depend on the machine or its load."""

from __future__ import annotations

import io
import re

from PIL import ImageFile

from idc_ray.errors import RejectedImage

#: Reads while a file is parsed, and one more for so many of its bytes. libpng's chunks take 5 reads for 8 KiB.
MAX_READS, BYTES_PER_READ = 1_000_000, 256
#: Each byte may be read so often (a decoder rewinds; Pillow keeps what tags of a TIFF point to), and some more.
READS_PER_BYTE, BYTES_BESIDES = 4, 1 << 20
#: Scans of a JPEG; encoders write about 10, optimisers up to 20. Each scan passes over all pixels.
MAX_SCANS = 100
#: Chunks of a PNG; libpng writes one for 8 KiB.
MAX_CHUNKS = 1_000_000
#: Pages of a TIFF that are counted.
MAX_PAGES = 64

_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # that ends the data of a scan
_END = 0xD9
# Compressions of TIFF whose decoders take time in proportion to the pixels.
_CHEAP_TIFF = frozenset(("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"))
_SLOW_CODECS = frozenset(("ppm", "ppm_plain", "bmp_rle"))  # written in Python


def too_costly(reason: str) -> RejectedImage:
    """The rejection of a file that was made to keep its reader busy."""
    return RejectedImage("decompression_bomb", f"{reason}; usual programs write no such files: save the image again")


class LimitedBytes(io.BytesIO):
    """A file in memory that counts what is read from it.

    Pillow's readers step through a file in Python, so a few megabytes of comments, tags or filling cost minutes.

    Args:
        data: the file's content.
        name: the format, for the message.
    """

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self._name = name
        self._size = len(data)
        self._bytes_left = READS_PER_BYTE * len(data) + BYTES_BESIDES
        self._reads_left = MAX_READS + len(data) // BYTES_PER_READ

    def allow(self, reads: int) -> None:
        """Let a decoder that reads byte by byte read so often."""
        self._reads_left += reads

    def read(self, size: int | None = -1, /) -> bytes:
        """As :meth:`io.BytesIO.read`.

        Raises:
            RejectedImage: ``decompression_bomb``, it was read too often.
        """
        data = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(data)
        if self._reads_left < 0:
            raise too_costly(f"the {self._name} of {self._size:,} bytes takes over {MAX_READS:,} reads")
        if self._bytes_left < 0:
            raise too_costly(f"the {self._name} reads its {self._size:,} bytes over {READS_PER_BYTE} times")
        return data


def check_jpeg(data: bytes) -> None:
    """Refuse a JPEG with more than ``MAX_SCANS`` scans: an empty one has a few bytes and costs a pass over the image.

    Only the first picture is checked; phones append others.

    Raises:
        RejectedImage: ``decompression_bomb``.
    """
    if data.count(_SCAN) <= MAX_SCANS:  # thumbnails and appended pictures are counted too, at no cost
        return
    scans, at = 0, 2
    for _ in range(MAX_READS):
        found = _MARKER.search(data, at)
        if found is None or data[found.end() - 1] == _END:
            return
        at = found.end()
        scans += data[at - 1] == _SCAN[1]
        if scans > MAX_SCANS:
            raise too_costly(f"the JPEG has over {MAX_SCANS} scans")
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise too_costly(f"the JPEG has over {MAX_READS:,} segments")


def is_costly(image: ImageFile.ImageFile) -> bool:
    """Whether the header of an opened image gives no bound on the time to decode it.

    HEIF and JPEG XL are read by other packages; JPEG 2000 nests tiles, precincts and layers; a TIFF may hold JPEG,
    LZMA, JBIG or WebP; some of Pillow's decoders are written in Python.
    """
    if image.format == "TIFF":
        return image.info.get("compression") not in _CHEAP_TIFF
    return image.format in ("JPEG2000", "HEIF", "JXL") or any(tile[0] in _SLOW_CODECS for tile in image.tile)
