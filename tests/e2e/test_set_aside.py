"""Bad images are set aside, each with a reason that a person understands; all good ones are done."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idc_ray.images import image_id
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import read_manifest
from idc_ray.store.quarantine import list_quarantined
from tests.e2e.conftest import Told, picture, rows, write_pictures

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]


def encoded(kind: str, array: np.ndarray | None = None, mode: str = "RGB", **options: object) -> bytes:
    image = Image.fromarray(picture(50) if array is None else array).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def good_files() -> dict[str, bytes]:
    """Unusual, and usable by a stated rule."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    rgba = np.dstack([picture(51), np.full(picture(51).shape[:2], 128, np.uint8)])
    deep = io.BytesIO()
    Image.fromarray(picture(54)[..., 0].astype(np.uint16) * 257).save(deep, "PNG")
    return {
        "grey.png": encoded("PNG", mode="L"),
        "palette.png": encoded("PNG", mode="P"),
        "alpha.png": encoded("PNG", rgba, mode="RGBA"),
        "cmyk.jpg": encoded("JPEG", mode="CMYK"),
        "rotated.jpg": encoded("JPEG", exif=rotated),
        "deep.png": deep.getvalue(),
        "UPPER.JPG": encoded("JPEG"),
        "flat.png": encoded("PNG", np.full((80, 80, 3), 128, np.uint8)),
        "a/same.png": encoded("PNG", picture(55)),
        "b/same.png": encoded("PNG", picture(56)),
        "sp ace\n'\"%20?#*[x]é.png": encoded("PNG", picture(57)),
    }


def bad_files() -> dict[str, bytes]:
    whole, photo = encoded("PNG"), encoded("JPEG")
    frames = [Image.fromarray(picture(seed)) for seed in (52, 53)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    bomb = io.BytesIO()
    Image.new("L", (4000, 4000)).save(bomb, "PNG")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    return {
        "empty.png": b"",
        "animated.gif": animated.getvalue(),
        "text.png": b"this is no image\n" * 20,
        "html.jpg": b"<!DOCTYPE html><html>404</html>",
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": photo[: len(photo) // 2],
        "header only.png": whole[:33],
        "signature only.png": whole[:8],
        "flipped byte.png": bytes(flipped),
        "zeros.jpg": bytes(5000),
        "small.png": encoded("PNG", picture(1, 20, 200)),
        "one pixel.png": encoded("PNG", picture(1, 1, 1)),
        "too large.png": bomb.getvalue(),
        "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pdf.png": b"%PDF-1.4 nothing",
        "zip.png": b"PK\x03\x04" + bytes(200),
        "bitmap.bmp": b"BM" + bytes(60),
        "cut.gif": encoded("GIF")[:60],
        "cut.tif": encoded("TIFF")[:100],
        "cut.webp": encoded("WEBP")[:60],
    }


def test_twenty_bad_files_among_good_ones(tmp_path: Path, run_here: Callable[..., Told]) -> None:
    source, output = write_pictures(tmp_path / "photos", 3), tmp_path / "out"
    for name, data in (good_files() | bad_files()).items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    (source / "dangling.png").symlink_to(tmp_path / "nowhere")
    (source / "folder.png").mkdir()
    settings = {"source.max_pixels": 1_000_000, "iterations": 1, "strict": True}

    done = run_here(source, output, settings)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    good = {"00.png", "01.png", "02.png", *good_files()}
    table = rows(output)
    assert set(table["image_id"].to_pylist()) == {image_id(name) for name in good}

    entries = {e.source: e for e in list_quarantined(resolve(str(output)), table["config_digest"][0].as_py())}
    assert set(entries) - {"dangling.png"} == set(bad_files())
    for name, entry in entries.items():
        assert len(entry.reason) > 15, (name, entry.reason)
        assert "Error" not in entry.reason, f"{name}: a reason for people, not {entry.reason}"
        assert name in done.stdout or name in done.stderr
    assert "no bytes" in entries["empty.png"].reason
    assert "20" in entries["small.png"].reason
    assert "max_pixels = 1,000,000" in entries["too large.png"].reason

    again = run_here(source, output, settings | {"strict": False})
    assert again.returncode == 0, again.stderr
    assert f" 0 images to condense, {len(good)} already done, {len(entries)} already quarantined" in again.stderr
    assert rows(output).equals(table)
    (source / "cut.png").write_bytes(encoded("PNG"))
    mended = run_here(source, output, settings | {"strict": False, "retry_quarantined": True})
    assert mended.returncode == 0, mended.stderr
    assert set(rows(output)["image_id"].to_pylist()) == {image_id(name) for name in {*good, "cut.png"}}

    for name in {*bad_files(), "dangling.png"} - {"cut.png"}:
        (source / name).unlink()
    cleaned = run_here(source, output, settings)
    assert cleaned.returncode == 0, cleaned.stderr
    manifest = read_manifest(resolve(str(output)))
    assert manifest is not None and (manifest.images, manifest.quarantined) == (len(good) + 1, [])


def test_nothing_but_bad_images_is_a_failure(tmp_path: Path, run_here: Callable[..., Told]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.png").write_bytes(b"no image")
    done = run_here(tmp_path / "photos", tmp_path / "out")
    assert done.returncode == 1
    assert "none of the 1 images could be condensed" in done.stderr


def test_malicious_files_affect_their_own_image_only(tmp_path: Path, run_here: Callable[..., Told]) -> None:
    """Catches a driver that waits for a pipe, a reader that is kept busy, and secrets or direction marks in a log."""
    source, output = write_pictures(tmp_path / "photos", 2), tmp_path / "out"
    scan = encoded("JPEG", progressive=True)
    at = scan.rfind(b"\xff\xc4")
    harmful = {
        "scans.jpg": scan[:-2] + scan[at:-2] * 3000 + b"\xff\xd9",
        "comment.pbm": b"P4\n#" + b"x" * 2_000_000 + b"\n8 8\n" + bytes(8),
        "photo\u202egnp.png": b"P4hunter2-hunter2",
        "phone.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    }
    for name, data in (harmful | {"good.jp2": encoded("JPEG2000")}).items():
        (source / name).write_bytes(data)
    os.mkfifo(source / "pipe.png")
    (tmp_path / "secret").write_text("PASSWORD=hunter2-hunter2")
    (source / "link.png").symlink_to(tmp_path / "secret")
    names = sorted(path.name for path in source.iterdir())
    (tmp_path / "list.txt").write_text("".join(f"photos/{name}\n" for name in names))
    done = run_here(tmp_path / "list.txt", output, {"iterations": 1})
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(resolve(str(output)))
    assert manifest is not None and manifest.images == 3
    codes = {entry["source"].removeprefix("photos/"): entry["code"] for entry in manifest.quarantined}
    assert codes.keys() == harmful.keys() | {"pipe.png", "link.png"}
    expected = {"scans.jpg": "decompression_bomb", "comment.pbm": "decompression_bomb", "pipe.png": "unreadable"}
    assert expected.items() <= codes.items()
    written = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    for content in (*written, done.stdout.encode(), done.stderr.encode()):
        assert b"hunter2" not in content
    assert "\u202e" not in done.stdout
    assert all("\u202e".encode() not in path.read_bytes() for path in output.rglob("*.json"))
