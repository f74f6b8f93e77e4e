"""Every kind of picture, good or bad, is made here: there are no binary fixtures."""

from __future__ import annotations

import io
import struct
import sys
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from idc_ray.errors import RejectedImage
from idc_ray.images.read import FORMATS, decode_rgb

Bytes = NDArray[np.uint8]
LIMIT = 1_000_000


def picture(height: int = 40, width: int = 60, channels: int = 3) -> Bytes:
    """Smooth colour, so that lossy formats stay near it."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [4 * y + x, 255 - 2 * y - x, 3 * x, 100 + 2 * y][:channels]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, bits: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(values: NDArray[np.uint16], extra: bytes = b"") -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[0], values.shape[1], 16, 0 if values.ndim == 2 else 2, rows, extra)


def tiff(values: NDArray[Any], photometric: int, sample_format: int = 1, bits: int | None = None) -> bytes:
    """A little-endian, uncompressed TIFF of one strip."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    depth = [bits or values.dtype.itemsize * 8] * channels
    tags: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]), (257, 4, [height]), (258, 3, depth), (259, 3, [1]), (262, 3, [photometric]), (273, 4, [0]),
        (277, 3, [channels]), (278, 4, [height]), (279, 4, [len(data)]), (339, 3, [sample_format] * channels),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    body, blob = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            packed, blob = struct.pack("<I", start + len(blob)), blob + packed
        body += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    storage = body.index(struct.pack("<HHI", 273, 4, 1)) + 8
    body = body[:storage] + struct.pack("<I", start + len(blob)) + body[storage + 4 :]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + blob + data


def code_of(data: bytes, limit: int = LIMIT) -> str:
    return rejection(data, limit).code


def rejection(data: bytes, limit: int = LIMIT) -> RejectedImage:
    with pytest.raises(RejectedImage) as caught:
        decode_rgb(data, limit)
    return caught.value


RGB = Image.fromarray(picture())


# Good pictures


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow was built without AVIF")
def test_avif_is_read_upright_and_recognised_by_its_content() -> None:
    """Catches an AVIF that is ignored though Pillow reads it, and one that is read as HEIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(RGB, "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    out = decode_rgb(data, LIMIT)
    np.testing.assert_array_equal(out, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert out.shape == (60, 40, 3)
    assert code_of(data[: len(data) // 2]) in ("truncated", "corrupt", "unreadable")
    frames = saved(RGB, "AVIF", save_all=True, append_images=[RGB.rotate(180)])
    assert code_of(frames) == "animated"


@pytest.mark.parametrize(
    ("data", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(50), "pillow-heif"),
        (b"\xff\x0a" + bytes(50), "pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "pillow-jxl-plugin"),
    ],
)
def test_formats_of_other_packages_name_them(data: bytes, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches phones' photographs that are silently left out."""
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install {package}" in rejection(data).reason


@pytest.mark.parametrize(("module", "name"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_formats_of_other_packages_are_read_where_these_are_installed(module: str, name: str) -> None:
    plugin = pytest.importorskip(module)
    if name == "HEIF":
        plugin.register_heif_opener()
    out = decode_rgb(saved(RGB, name, quality=95), LIMIT)
    assert np.abs(out.astype(int) - picture()).mean() < 12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("BMP", {}), ("PPM", {}),
        ("WEBP", {"lossless": True}), ("JPEG2000", {}),
    ],
)  # fmt: skip
def test_lossless_formats_come_back_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    """Catches a swapped channel order, a lost row at a strip's edge, a format that is not registered."""
    tall = picture(300, 50)
    out = decode_rgb(saved(Image.fromarray(tall), name, **options), LIMIT)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(out, tall)


def test_jpeg_equals_pillows_own_decoding() -> None:
    data = saved(Image.fromarray(picture(300, 200)), "JPEG", quality=90)
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["1", "L"])
@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP", "PPM"])
def test_grey_becomes_three_equal_channels(mode: str, name: str) -> None:
    grey = RGB.convert(mode)
    out = decode_rgb(saved(grey, name), LIMIT)
    np.testing.assert_array_equal(out, np.repeat(np.asarray(grey.convert("L"))[..., None], 3, axis=2))


@pytest.mark.parametrize("name", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_becomes_its_colours(name: str) -> None:
    """Catches palette indices mistaken for grey."""
    palette = RGB.quantize(64)
    np.testing.assert_array_equal(decode_rgb(saved(palette, name), LIMIT), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_a_palettes_transparent_entry_is_laid_over_white(name: str) -> None:
    """Catches the hidden colour of transparent pixels (here red) shining through."""
    image = Image.new("P", (8, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((3, 2), 0)
    out = decode_rgb(saved(image, name, transparency=0), LIMIT)
    assert out[2, 3].tolist() == [255, 255, 255]
    assert out[0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
@pytest.mark.parametrize(("alpha", "expected"), [(255, [10, 20, 30]), (0, [255, 255, 255]), (51, [206, 208, 210])])
def test_alpha_is_laid_over_white(name: str, alpha: int, expected: list[int]) -> None:
    out = decode_rgb(saved(Image.new("RGBA", (8, 4), (10, 20, 30, alpha)), name), LIMIT)
    assert np.abs(out.astype(int) - expected).max() <= (0 if alpha in (0, 255) else 1)


def test_opaque_alpha_changes_nothing() -> None:
    image = RGB.convert("RGBA")
    np.testing.assert_array_equal(decode_rgb(saved(image, "PNG"), LIMIT), picture())


def test_grey_with_alpha_is_laid_over_white() -> None:
    out = decode_rgb(saved(Image.new("LA", (8, 4), (10, 0)), "PNG"), LIMIT)
    assert (out == 255).all()


def test_a_transparent_colour_is_laid_over_white() -> None:
    """PNG's tRNS on RGB without an alpha channel."""
    rows = b"\0" + bytes([9, 9, 9, 50, 60, 70])
    out = decode_rgb(png(1, 2, 8, 2, rows, chunk(b"tRNS", struct.pack(">3H", 9, 9, 9))), LIMIT)
    assert out.tolist() == [[[255, 255, 255], [50, 60, 70]]]


DEEP = np.arange(0, 65536, 17, dtype=np.uint16)[:3840].reshape(40, 96)


def as_ppm(values: NDArray[np.uint16]) -> bytes:
    kind = "P5" if values.ndim == 2 else "P6"
    header = f"{kind}\n{values.shape[1]} {values.shape[0]}\n65535\n".encode()
    return header + values.astype(">u2").tobytes()


@pytest.mark.parametrize("encode", [deep_png, lambda v: tiff(v, 1 if v.ndim == 2 else 2)])
@pytest.mark.parametrize("shape", [(40, 96), (40, 32, 3)])
def test_16_bits_become_their_high_byte(encode: Callable[[NDArray[np.uint16]], bytes], shape: tuple[int, ...]) -> None:
    """Catches grey clipped at 255 (Pillow's own convert) and grey and colour scaled by different rules."""
    values = DEEP.reshape(shape)
    out = decode_rgb(encode(values), LIMIT)
    expected = (values >> 8).astype(np.uint8)
    np.testing.assert_array_equal(out, expected if values.ndim == 3 else np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("shape", [(40, 96), (40, 32, 3)])
def test_16_bit_pnm_is_scaled_to_8_bits(shape: tuple[int, ...]) -> None:
    """Catches Pillow's mode "I" for grey, which a plain conversion clips. Pillow rounds colour: one level is free."""
    values = DEEP.reshape(shape)
    out = decode_rgb(as_ppm(values), LIMIT).astype(int)
    expected = (values >> 8).astype(int)
    assert np.abs(out - (expected if values.ndim == 3 else expected[..., None])).max() <= 1


def test_16_bit_grey_jpeg2000_becomes_its_high_byte() -> None:
    out = decode_rgb(saved(Image.fromarray(DEEP), "JPEG2000"), LIMIT)
    np.testing.assert_array_equal(out[..., 0], DEEP >> 8)


def test_12_bit_grey_uses_the_whole_range() -> None:
    """Catches 12-bit scans that come out sixteen times too dark. Two values in three bytes: 0xFFF and 0x800."""
    packed = np.tile(np.frombuffer(b"\xff\xf8\x00", np.uint8), 4)
    data = bytearray(tiff(packed.reshape(1, 12), 1, bits=12))
    data[data.index(struct.pack("<HHI", 256, 4, 1)) + 8] = 8  # width: eight pixels
    assert decode_rgb(bytes(data), LIMIT)[0, :2, 0].tolist() == [255, 128]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_whose_zero_is_white_is_inverted(dtype: type) -> None:
    """Catches negatives: Pillow inverts 8 bits but not 16."""
    values = (np.arange(32).reshape(4, 8) * (8 if dtype == np.uint8 else 2048)).astype(dtype)
    out = decode_rgb(tiff(values, 0), LIMIT)
    np.testing.assert_array_equal(out[..., 0], 255 - np.arange(32).reshape(4, 8) * 8)


def test_a_transparent_colour_of_16_bits_is_left_out() -> None:
    """Catches a 16-bit colour key compared with 8-bit values, which blanks other colours."""
    values = np.array([[[0x0909, 0x0909, 0x0909], [0x0910, 0x0909, 0x0909]]], np.uint16)
    out = decode_rgb(deep_png(values, chunk(b"tRNS", struct.pack(">3H", 9, 9, 9))), LIMIT)
    assert (out == 9).all()


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_is_converted_and_not_inverted(name: str) -> None:
    """Catches the negative that Adobe's inverted CMYK JPEGs give. Pillow writes JPEGs the way Adobe does."""
    out = decode_rgb(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), name), LIMIT)
    assert np.abs(out.astype(int) - [255, 0, 0]).max() <= 3


def test_ycbcr_tiff_is_converted() -> None:
    ycbcr = RGB.convert("YCbCr")
    out = decode_rgb(tiff(np.asarray(ycbcr), 6), LIMIT)
    np.testing.assert_array_equal(out, np.asarray(ycbcr.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_exif_rotated_pictures_are_turned_upright(orientation: int, name: str, options: dict[str, Any]) -> None:
    """Catches a missing, a wrong, and (TIFF, which Pillow turns itself) a double turn."""
    undo = {  # the stored picture is the upright one turned back; numpy here, not the code's own way
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = Image.fromarray(np.ascontiguousarray(undo[orientation](picture())))
    np.testing.assert_array_equal(decode_rgb(saved(turned, name, exif=exif, **options), LIMIT), picture())


def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = saved(RGB, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode_rgb(data, LIMIT).shape == (40, 60, 3)


def test_a_phones_mpo_jpeg_gives_its_photograph() -> None:
    """Catches photographs rejected as animations because a depth map follows them in the file."""
    data = saved(RGB, "MPO", save_all=True, append_images=[Image.new("RGB", (60, 40), "red")])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(decode_rgb(data, LIMIT).astype(int) - picture()).mean() < 6


def test_a_tiffs_thumbnail_is_no_page() -> None:
    small = Image.new("RGB", (6, 4))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    data = saved(RGB, "TIFF", save_all=True, append_images=[small])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), picture())


def test_a_still_gif_or_webp_is_no_animation() -> None:
    assert decode_rgb(saved(RGB, "GIF"), LIMIT).shape == (40, 60, 3)
    assert decode_rgb(saved(RGB, "WEBP"), LIMIT).shape == (40, 60, 3)


# Bad pictures


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"This is a text, not a picture.\n", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),  # Pillow would run ghostscript
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (bytes(1000), "not_an_image"),
    ],
)
def test_files_that_are_no_images_are_distinguished(data: bytes, code: str) -> None:
    assert code_of(data) == code


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("TIFF", {}), ("BMP", {}),
        ("GIF", {}), ("PPM", {}), ("JPEG2000", {}), ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_file_cut_short_is_rejected(name: str, options: dict[str, Any], kept: float) -> None:
    """Catches grey lower halves: decoders that fill up what is missing."""
    noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3)).astype(np.uint8)
    data = saved(Image.fromarray(noise), name, **options)
    assert code_of(data[: int(kept * len(data))]) in ("truncated", "corrupt")


def test_a_png_without_its_end_is_truncated() -> None:
    """Catches copies that stopped just before the end; Pillow itself is content with these."""
    data = saved(RGB, "PNG")
    assert [code_of(data[:-cut]) for cut in (1, 4, 12, 13)] == ["truncated"] * 4


def test_png_checksums_count() -> None:
    """Catches flipped bits that still inflate: Pillow does not compare the checksum of pixel data."""
    data = bytearray(deep_png(DEEP))
    at = data.index(b"IDAT") + 4 + struct.unpack(">I", data[data.index(b"IDAT") - 4 : data.index(b"IDAT")])[0]
    data[at] ^= 1
    assert code_of(bytes(data)) == "corrupt"
    assert "IDAT" in rejection(bytes(data)).reason


def test_corrupt_compressed_tiff_is_rejected() -> None:
    data = bytearray(saved(RGB, "TIFF", compression="tiff_adobe_deflate"))
    data[60:90] = bytes(30)
    assert code_of(bytes(data)) == "corrupt"


def test_no_byte_flip_raises_anything_but_a_rejection() -> None:
    """Catches exceptions of Pillow (struct.error, KeyError, …) that would end a night's run."""
    rng = np.random.default_rng(1)
    for name in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"):
        good = saved(RGB, name)
        for _ in range(40):
            data = bytearray(good)
            for at in rng.integers(0, min(len(data), 300), 3):
                data[at] = rng.integers(256)
            with suppress(RejectedImage):
                assert decode_rgb(bytes(data), LIMIT).shape[2] == 3


def test_what_pillow_did_not_foresee_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    error = rejection(saved(RGB, "BMP"))
    assert error.code == "unreadable"
    assert "KeyError" in error.reason


@pytest.mark.parametrize(
    "begin",
    [b"", b"P4", b"P6\n", b"P1 2 2\n", b"P3 2 2 255\n", b"P6 20 ", b"BM", b"GIF89a", b"II*\0", b"RIFF", b"\xff\xd8\xff",
     b"\x89PNG\r\n\x1a\n", b"RIFF    WEBPVP8 "],
)  # fmt: skip
def test_a_reason_holds_no_bytes_of_a_file_that_is_no_image(begin: bytes) -> None:
    """Catches a link in the input to a file with a secret, whose first bytes stood in the log and in the output."""
    for secret in (b"hunter2-Secret", b"-----BEGIN KEY-----\nhunter2", b"99hunter2Secret 1 1", b"12hunter 255 255"):
        reason = rejection(begin + secret * 3).reason
        assert "hunter" not in reason and "Secret" not in reason, reason


def test_too_many_pixels_are_refused_from_the_header_with_the_numbers() -> None:
    error = rejection(saved(RGB, "PNG"), 60 * 40 - 1)
    assert error.code == "too_many_pixels"
    assert "60 x 40" in error.reason
    assert "2,399" in error.reason
    assert decode_rgb(saved(RGB, "PNG"), 60 * 40).shape == (40, 60, 3)


def bmp_header(side: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        png(60_000, 60_000, 8, 2, bytes(10_000)),
        f"P6\n{60_000} {60_000}\n255\n".encode(),
        bmp_header(60_000),
        saved(Image.new("L", (5000, 5000)), "PNG"),  # 25 million pixels in few bytes: really a bomb
    ],
)
def test_a_bomb_costs_no_memory(data: bytes) -> None:
    tracemalloc.start()
    assert code_of(data) == "too_many_pixels"
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()


def test_a_webp_bomb_is_refused() -> None:
    """Pillow's limit rejects this file before the package's can."""
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (16_383).to_bytes(3, "little") * 2
    body = b"WEBP" + vp8x + b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 16_383 | 16_383 << 14)
    assert code_of(b"RIFF" + struct.pack("<I", len(body)) + body) in ("too_many_pixels", "corrupt")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_a_bomb_in_a_pngs_text_is_refused(kind: bytes) -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    text = b"k\0\0" + bomb if kind == b"zTXt" else b"k\0\1\0\0\0" + bomb
    tracemalloc.start()
    assert code_of(png(1, 1, 8, 0, bytes(2), chunk(kind, text))) == "decompression_bomb"
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_pixel_data_that_unpacks_to_more_than_its_picture_costs_no_memory() -> None:
    tracemalloc.start()
    assert decode_rgb(png(1, 1, 8, 2, bytes(50_000_000)), LIMIT).shape == (1, 1, 3)
    assert tracemalloc.get_traced_memory()[1] < 60_000_000  # what building it took
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "word"), [("GIF", "frames"), ("PNG", "frames"), ("WEBP", "frames"), ("TIFF", "pages")]
)
def test_animations_and_documents_are_refused_with_their_count(name: str, word: str) -> None:
    """Catches frames dropped silently."""
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "green", "blue")]
    error = rejection(saved(frames[0], name, save_all=True, append_images=frames[1:]))
    assert error.code == "animated"
    assert f"3 {word}" in error.reason


@pytest.mark.parametrize(
    "data",
    [
        tiff(np.zeros((4, 8), np.float32), 1, sample_format=3),
        tiff(np.zeros((4, 8, 3), np.uint8), 8),  # LAB
        tiff(np.zeros((4, 8), np.uint32), 1),
        tiff(np.zeros((4, 8), np.int16), 1, sample_format=2),
        b"Pf\n2 1\n-1.0\n" + bytes(8),
    ],
    ids=["float", "lab", "int32", "signed", "pfm"],
)
def test_pixels_without_a_stated_range_are_refused(data: bytes) -> None:
    assert code_of(data) == "unsupported_pixels"


# Manners


def test_nothing_of_pillow_or_warnings_changes() -> None:
    """Catches a raised pixel limit or a filter that stays for the rest of the process."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    decode_rgb(saved(RGB, "PNG"), LIMIT)
    assert code_of(b"BM") != ""
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters))


def test_pillows_limit_is_not_the_packages_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a --max-pixels above Pillow's own limit that does not count."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("PNG", "JPEG", "BMP"):
        assert decode_rgb(saved(RGB, name), LIMIT).shape == (40, 60, 3)


def test_pillows_warnings_stay_inside() -> None:
    """Damaged metadata makes Pillow warn; as errors such warnings would reject a good picture."""
    data = saved(RGB, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            Image.open(io.BytesIO(data)).getexif()
        assert decode_rgb(data, LIMIT).shape == (40, 60, 3)


def test_threads_do_not_disturb_each_other() -> None:
    before = list(warnings.filters)
    data = [saved(RGB, "PNG"), saved(RGB, "BMP"), saved(RGB, "TIFF")] * 40
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda d: decode_rgb(d, LIMIT), data):
            np.testing.assert_array_equal(out, picture())
    assert list(warnings.filters) == before
