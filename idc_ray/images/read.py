"""Encoded image to 8-bit RGB, by stated rules, or a reason why not."""

from __future__ import annotations

import importlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, features

from idc_ray.errors import RejectedImage
from idc_ray.images.color import Colors, has_tables, read_profile
from idc_ray.images.isolated import decode_isolated
from idc_ray.images.limits import MAX_CHUNKS, MAX_PAGES, LimitedBytes, check_jpeg, is_costly, too_costly
from idc_ray.images.pixels import check_mode, to_rgb, upright

# Told apart by content. None of these runs another program, as Pillow's EPS reader does.
FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
for _module in ("Png", "Jpeg", "WebP", "Tiff", "Bmp", "Gif", "Ppm", "Jpeg2K"):
    importlib.import_module(f"PIL.{_module}ImagePlugin")  # each registers its format
if features.check("avif"):  # Pillow 11.3 and later, as it was built
    importlib.import_module("PIL.AvifImagePlugin")
    FORMATS += ("AVIF",)
# Formats of packages that register a reader with Pillow, by what a file begins with.
_PLUGINS = {
    "HEIF": (re.compile(rb"(?s).{4}ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)"), "pillow-heif", "pillow_heif"),
    "JXL": (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"), "pillow-jxl-plugin", "pillow_jxl"),
}

_STRIP = 128  # rows converted at a time, so that conversion needs no second image
_BYTES = re.compile(r"b'(?:[^'\\]|\\.)*'|b\"(?:[^\"\\]|\\.)*\"")  # that Pillow quotes from a file
# TIFF tags
_SUBFILE_TYPE = 254  # bit 0: a smaller version of another page
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262  # 0: grey whose 0 is white


class Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: uint8 (H, W, 3), contiguous, 0 to 255.
        profile: name of the colour profile that it was converted from, ``ignored: ...`` for one that cannot be used;
            None: no profile, that of sRGB, or colours are kept.
    """

    pixels: NDArray[np.uint8]
    profile: str | None = None


def decode_rgb(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """:func:`decode_image` with the colours as stored: uint8 (H, W, 3)."""
    return decode_image(data, max_pixels, "keep").pixels


def decode_image(data: bytes, max_pixels: int, colors: Colors = "srgb") -> Decoded:
    """Decode one image.

    The format is detected by content, not by name. Rules:

    - Grey and palette images become RGB; a palette's transparency is alpha.
    - Alpha: composited over white, as in viewers. Opaque alpha changes nothing. A transparent colour of
      a PNG with 16 bits is not applied (Pillow compares it with 8-bit values).
    - 16 bits: the high byte (v // 256), which is also what Pillow does with 16-bit RGB. Grey of b bits:
      v // 2**(b - 8).
    - CMYK: by its profile, or Pillow's plain conversion; JPEG's as Adobe stores it, inverted. YCbCr: by JPEG's matrix.
    - An embedded ICC profile of RGB, grey or CMYK: converted to sRGB by littleCMS (relative colorimetric, black point
      compensation), after alpha and at 8 bits. sRGB profiles change nothing; damaged and unfitting ones are ignored.
      PNG's gamma, chromaticities and cICP are not applied.
    - LAB, floating point, and integers of more or signed bits have no stated range or colours here: rejected.
    - EXIF orientation: turned upright. Orientation that cannot be read counts as upright.
    - Animated GIF, PNG, WebP, and TIFF of several pages: rejected, since one file is one instance and dropping frames
      silently would lose data. Smaller versions beside the first page (thumbnails, pyramids) are not pages. The
      further pictures of a phone's JPEG (MPO: depth, gain map) are left out.
    - Files that are made to keep a reader busy are rejected by counts, never by time: scans of a JPEG, chunks of a PNG,
      pages of a TIFF, reads while the file is parsed. JPEG 2000, PPM as text or of other depths, run-length BMP and
      TIFF with rare compressions have no such bound: another process decodes them, in up to 300 s of CPU time
      for 100 million pixels, and 64 bytes of memory a pixel.
    - HEIF (phones' ``.heic``) and JPEG XL are read where ``pillow-heif`` and ``pillow-jxl-plugin`` are installed.
    - PNG: every chunk's CRC is checked and the end must be there. A JPEG that is damaged in the middle, but not cut
      short, cannot be detected, as JPEG has no checksums.

    Thread safe; Pillow's settings are neither changed nor consulted, except that its own limit for WebP, GIF and TIFF
    tiles (``2 * Image.MAX_IMAGE_PIXELS``, 179 million) also holds. Memory: 4 bytes a pixel in Pillow, 3 in the result.

    Args:
        data: the file's bytes.
        max_pixels: most pixels allowed, compared with the size in the header before anything is decoded.
        colors: ``srgb``, or ``keep``: profiles are not applied.

    Raises:
        RejectedImage: ``empty``, ``not_an_image``, ``too_many_pixels``, ``decompression_bomb``, ``animated``,
            ``unsupported_pixels``, ``truncated``, ``corrupt``, ``out_of_memory``, or ``unreadable`` for
            anything else that Pillow raises.
    """
    try:
        return _decoded(data, max_pixels, colors, costly=False)
    except _CostlyImage:
        return Decoded(*decode_isolated(data, max_pixels, colors))


def decode_here(data: bytes, max_pixels: int, colors: Colors = "keep") -> Decoded:
    """:func:`decode_image`, always in this process."""
    return _decoded(data, max_pixels, colors, costly=True)


class _CostlyImage(Exception):
    """The image has to be decoded in a separate process."""


def _decoded(data: bytes, max_pixels: int, colors: Colors, costly: bool) -> Decoded:
    if not data:
        raise RejectedImage("empty", "the file has no bytes")
    name = _format_of(data)
    try:
        with _pillow_warnings_hidden():
            return _decode(data, name, max_pixels, colors, costly)
    except (RejectedImage, _CostlyImage):
        raise
    except MemoryError as error:
        raise RejectedImage("out_of_memory", f"not enough memory to decode this {name}; lower max_pixels") from error
    except Image.DecompressionBombError as error:
        raise RejectedImage("too_many_pixels", str(error)) from error
    except Exception as error:
        raise _fault(name, error, data) from error


def rgb_profile(data: bytes) -> bytes | None:
    """The ICC profile of an image that :func:`decode_image` accepts, if it is one of RGB colours.

    Whoever writes pixels derived from the image's needs it: without it an image in another colour space than sRGB,
    such as a phone's Display P3, is shown in wrong colours. A profile of grey or CMYK fits no RGB pixels.
    """
    name = _format_of(data)
    with _pillow_warnings_hidden(), _open(LimitedBytes(data, name), name) as image:
        profile = image.info.get("icc_profile")
    is_rgb = isinstance(profile, bytes) and profile[16:20] == b"RGB "  # the header's colour space (ICC.1, 7.2.6)
    return profile if is_rgb else None


def header_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image as its header states them.

    Raises:
        RejectedImage: as :func:`decode_rgb`.
    """
    name = _format_of(data)
    try:
        with _pillow_warnings_hidden(), _open(LimitedBytes(data, name), name) as image:
            return image.size
    except RejectedImage:
        raise
    except Exception as error:
        raise _fault(name, error, data) from error


def _format_of(data: bytes) -> str:
    for name in FORMATS:
        accept = Image.OPEN[name][1]
        if accept is not None and accept(data[:16]) is True and not (name == "AVIF" and b"avi" not in data[8:64]):
            return name
    for name, (begin, package, module) in _PLUGINS.items():
        if begin.match(data):
            _import_plugin(name, package, module)
            return name
    # None of its bytes: a link in the input may lead to a file with secrets.
    raise RejectedImage("not_an_image", f"the content of its {len(data):,} bytes is not {', '.join(FORMATS)}")


def _import_plugin(name: str, package: str, module: str) -> None:
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        fix = f"pip install {package} on every machine reads it, or save it in another format"
        reason = f"the content is {name}, which Pillow does not read by itself; {fix}"
        raise RejectedImage("not_an_image", reason) from None
    if name == "HEIF" and name not in Image.OPEN:
        plugin.register_heif_opener()


def _open(file: LimitedBytes, name: str) -> ImageFile.ImageFile:
    # Not Image.open: that compares the size with a limit of the process, here the limit is the caller's.
    return Image.OPEN[name][0](file, "")


def _decode(data: bytes, name: str, max_pixels: int, colors: Colors, costly: bool) -> Decoded:
    if name == "PNG":
        _check_png(data)
    elif name == "JPEG":
        check_jpeg(data)
    file = LimitedBytes(data, name)
    with _open(file, name) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise RejectedImage(
                "too_many_pixels",
                f"{width} x {height} is {width * height:,} pixels, more than max_pixels = {max_pixels:,}",
            )
        _check_single(image)
        check_mode(image)
        if name == "PNG" and data[24] == 16:
            image.info.pop("transparency", None)
        grey_bits, inverted = _deep_grey(image)
        stored = image.info.get("icc_profile") if colors == "srgb" else None
        slow = is_costly(image)
        if (slow or has_tables(stored)) and not costly:
            raise _CostlyImage
        if slow:
            file.allow(4 * width * height)
        profile = read_profile(stored, image.mode)
        image.load()
        orientation = _orientation(image)  # not before: Pillow turns a TIFF while loading it, and then forgets the tag
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, _STRIP):
            strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
            pixels[top : top + _STRIP] = to_rgb(strip, grey_bits, inverted, profile)
    return Decoded(upright(pixels, orientation), profile.note)


def _check_png(data: bytes) -> None:
    """Every chunk is whole and agrees with its CRC, up to IEND; Pillow skips the CRC of pixel data."""
    view, at = memoryview(data), 8
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            break
        (length,) = struct.unpack_from(">I", data, at)
        kind = bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise RejectedImage("corrupt", f"the PNG chunk {kind!r} at byte {at} does not match its checksum")
        if kind == b"IEND":
            return
        at = end + 4
    else:
        raise too_costly(f"the PNG has over {MAX_CHUNKS:,} chunks")
    raise RejectedImage("truncated", f"the PNG ends after {len(data):,} bytes without its end mark")


def _check_single(image: ImageFile.ImageFile) -> None:
    if image.format == "MPO":
        return
    if image.format == "TIFF":
        frames, several = _pages(image)
    else:
        frames = int(getattr(image, "n_frames", 1))
        several = frames > 1
    if several:
        kind = "pages" if image.format == "TIFF" else "frames"
        count = f"over {MAX_PAGES}" if image.format == "TIFF" and frames > MAX_PAGES else str(frames)
        reason = f"the {image.format} has {count} {kind}; expected one: save them as separate files"
        raise RejectedImage("animated", reason)


def _pages(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """Pages of a TIFF, counted up to one more than ``MAX_PAGES``, and whether one of them is no smaller version."""
    frames, several = 1, False
    while frames <= MAX_PAGES:  # Pillow's own count has no end before the file's
        try:
            image.seek(frames)
        except EOFError:
            break
        several = several or not _tag(image, _SUBFILE_TYPE, 0) & 1
        frames += 1
    image.seek(0)
    return frames, several or frames > MAX_PAGES


def _tag(image: ImageFile.ImageFile, tag: int, default: int) -> int:
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]  # TIFF only
    return int(value[0] if isinstance(value, tuple) else value)


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata is no reason to lose the pixels
        return 1


def _deep_grey(image: ImageFile.ImageFile) -> tuple[int, bool]:
    """Significant bits of a grey image of more than 8, and whether 0 is white; PPM and JPEG 2000 are scaled to 16."""
    if image.format != "TIFF":
        return 16, False
    return _tag(image, _BITS_PER_SAMPLE, 16), _tag(image, _PHOTOMETRIC, 1) == 0


@contextmanager
def _pillow_warnings_hidden() -> Iterator[None]:
    """Hide what Pillow warns about (damaged metadata, large sizes): the answer is an image or a RejectedImage.

    ``warnings.catch_warnings`` is not thread safe: leaving it puts back an old list of filters, over
    those that another thread has set meanwhile. One filter, for Pillow's modules, goes in and out instead.
    """
    filters = warnings.filters  # this very list: another thread may exchange it meanwhile
    hide = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    filters.insert(0, hide)  # type: ignore[attr-defined]  # typed as a Sequence, is a list
    try:
        yield
    finally:
        filters.remove(hide)  # type: ignore[attr-defined]


def _fault(name: str, error: Exception, data: bytes) -> RejectedImage:
    text = _BYTES.sub("(bytes)", str(error)) or type(error).__name__
    if "MAX_TEXT" in text or "Too much memory used in text" in text:
        return RejectedImage("decompression_bomb", f"the text in this {name} unpacks to more than the limit: {text}")
    if _is_cut(name, text, data):
        return RejectedImage("truncated", f"the {name} ends too early, after {len(data):,} bytes: {text}")
    if isinstance(error, OSError | SyntaxError | EOFError | struct.error | zlib.error):
        return RejectedImage("corrupt", f"the {name} is damaged: {text}")
    return RejectedImage("unreadable", f"the {name} cannot be decoded: {type(error).__name__}: {text}")


def _is_cut(name: str, text: str, data: bytes) -> bool:
    if name == "WEBP" and len(data) >= 8:
        return len(data) < int.from_bytes(data[4:8], "little") + 8
    return any(mark in text.lower() for mark in ("truncated", "only got", "not enough data", "requires a buffer"))
