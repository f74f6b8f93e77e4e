from __future__ import annotations

import io
import struct
from itertools import accumulate

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from idc_ray.images import color, isolated
from idc_ray.images.read import decode_image, decode_rgb

LIMIT = 1_000_000
# Primaries of Display P3 and of sRGB in XYZ, adapted to D50 (CIE 1931; ICC.1, annex E), columns red, green, blue.
P3 = [[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]]
SRGB = [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]]
WHITE = (0.9642, 1.0, 0.82491)


def profile(space: bytes, primaries: list[list[float]] | None = None, gamma: float = 2.2, **more: bytes) -> bytes:
    """An ICC profile, version 2, of a gamma and of primaries if it is one of RGB."""
    number = lambda value: struct.pack(">i", round(value * 65536))  # noqa: E731
    xyz = lambda values: b"XYZ \0\0\0\0" + b"".join(map(number, values))  # noqa: E731
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    name = b"desc\0\0\0\0" + struct.pack(">I", 9) + b"Test\x1b[31" + bytes(90)
    tags = {b"desc": name, b"wtpt": xyz(WHITE)} | {key.encode(): value for key, value in more.items()}
    if primaries is None:
        tags |= {b"kTRC": curve}
    else:
        columns = np.array(primaries).T
        tags |= {k: xyz(v) for k, v in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    data = [value + bytes(-len(value) % 4) for value in tags.values()]
    begins = accumulate(map(len, data[:-1]), initial=128 + 4 + 12 * len(tags))
    table = b"".join(
        name + struct.pack(">II", begin, len(value)) for (name, value), begin in zip(tags.items(), begins, strict=True)
    )
    body = struct.pack(">I", len(tags)) + table + b"".join(data)
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), bytes(4), 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, WHITE))
    return header.ljust(128, b"\0") + body


def picture() -> NDArray[np.uint8]:
    y, x = np.mgrid[0:150, 0:200]  # more than one strip
    return np.stack([x, 60 + y, 255 - x], axis=-1).clip(0, 255).astype(np.uint8)


def saved(pixels: NDArray[np.uint8] | Image.Image, icc: bytes | None, name: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(buffer, name, icc_profile=icc, **options)
    return buffer.getvalue()


def encoded(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve of sRGB (IEC 61966-2-1)."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def expected(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    linear = (pixels / 255) ** 2.2
    return encoded(linear @ (np.linalg.inv(SRGB) @ np.array(P3)).T)


@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP"])
def test_display_p3_becomes_srgb_as_the_standards_say(name: str) -> None:
    """Catches phones' photographs whose reds are dull, and a conversion that a format's reader skips."""
    options = {"lossless": True} if name == "WEBP" else {}
    data = saved(picture(), profile(b"RGB ", P3), name, **options)
    pixels, said = decode_image(data, LIMIT)
    difference = np.abs(pixels - expected(picture()))
    assert difference.max() < 2 and difference.mean() < 0.6
    assert said == "Test\\x1b[31"
    np.testing.assert_array_equal(decode_image(data, LIMIT, "keep").pixels, picture())
    assert decode_image(data, LIMIT, "keep").profile is None
    np.testing.assert_array_equal(decode_rgb(data, LIMIT), picture())


def test_srgb_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the rounding of a conversion in every usual photograph, and one that is made again for each."""
    builtin = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = saved(picture(), builtin)  # of sRGB with another curve, a level off
    assert decode_image(other, LIMIT).profile is None
    np.testing.assert_array_equal(decode_image(other, LIMIT).pixels, picture())
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *_: pytest.fail("read again"))
    decode_image(other, LIMIT)


def test_grey_by_its_profile() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 4, axis=0)
    pixels, said = decode_image(saved(ramp, profile(b"GRAY", gamma=1.0)), LIMIT)
    assert said is not None and pixels.shape == (4, 256, 3)
    assert np.abs(pixels - encoded(ramp[..., None] / 255)).max() <= 1
    assert (pixels == pixels[..., :1]).all()


def test_cmyk_by_its_table_in_a_process_of_its_own() -> None:
    """Catches a table of a stranger's that is parsed here, and inks whose profile is not applied."""
    values = [0xFF - (0x60 if corner & 8 else 0) for corner in range(16) for _ in range(3)]  # only black is dark
    identity = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    table = (
        b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4 + bytes(values) + bytes(range(256)) * 3
    )
    icc = bytearray(profile(b"CMYK", A2B0=table))
    icc[20:24] = b"Lab "
    image = Image.merge("CMYK", [Image.fromarray(picture()[..., i % 3]) for i in range(4)])
    data = saved(image, bytes(icc), "TIFF")
    isolated._end()
    decoded = decode_image(data, LIMIT)
    assert isolated._helper is not None and decoded.profile == "Test\\x1b[31"
    assert np.abs(decoded.pixels.astype(int) - decode_rgb(data, LIMIT)).mean() > 20
    isolated._end()


@pytest.mark.parametrize(
    ("icc", "reason"),
    [
        (b"x" * 200, "ignored: of xxxx pixels"),
        (b"x", "ignored: damaged"),
        (profile(b"RGB ", P3)[:300], "ignored: damaged"),
        (profile(b"GRAY"), "ignored: of L pixels"),
        (profile(b"Lab ", P3), "ignored: of Lab pixels"),
    ],
)
def test_an_unusable_profile_is_ignored_and_reported(icc: bytes, reason: str) -> None:
    """Catches good pixels that are lost with a damaged profile."""
    pixels, said = decode_image(saved(picture(), icc), LIMIT)
    np.testing.assert_array_equal(pixels, picture())
    assert said == reason


def test_alpha_and_orientation_are_as_without_a_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = Image.fromarray(picture()).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.where(picture()[..., 0] < 100, 0, 255).astype(np.uint8)))
    data = saved(rgba, profile(b"RGB ", P3), exif=exif)
    plain, converted = decode_rgb(data, LIMIT), decode_image(data, LIMIT).pixels
    assert plain.shape == converted.shape == (200, 150, 3)
    assert (converted[:100] == 255).all() and (plain != converted).any()


def test_a_directory_of_tags_that_is_cut_has_no_tables() -> None:
    assert not color.has_tables(b"\0" * 128 + b"\xff" * 4) and not color.has_tables(None)
    assert color.has_tables(profile(b"RGB ", P3, D2B0=b"mpet"))
