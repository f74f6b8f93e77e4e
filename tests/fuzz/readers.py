"""Every reader of files that anybody may have written, with valid files for it and with what it may raise."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image, ImageCms
from pyarrow import fs

from idc_ray.config import CondenseConfig, load
from idc_ray.config.train import TrainConfig
from idc_ray.dataset import CondensedDataset
from idc_ray.errors import BadRequest, IdcError, RejectedImage
from idc_ray.exporting import export_set
from idc_ray.images import ImageRef, decode_image, find_images, read_encoded, rgb_profile
from idc_ray.images.parquet import read_row
from idc_ray.models import load_teacher
from idc_ray.models.checkpoint import checkpoint_bytes
from idc_ray.models.registry import ModelSpec
from idc_ray.store.filesystem import json_bytes, resolve
from idc_ray.store.sealed import sealed
from idc_ray.store.status import read_status
from idc_ray.store.verify import verify
from tests.fuzz.mutate import damaged, damaged_json, damaged_text, with_checksums
from tests.training.test_sources import condensed

MAX_PIXELS = 4_000_000
Mutation = Callable[[bytes, Sequence[bytes], random.Random], bytes]


@dataclass(frozen=True)
class Reader:
    """What is tested.

    Attributes:
        files: valid files.
        mutate: makes another file of one of them.
        read: reads a file; the folder is empty, or what ``prepare`` made of it.
        allowed: what ``read`` may raise.
        prepare: makes the folder.
    """

    files: Sequence[bytes]
    mutate: Mutation
    read: Callable[[bytes, Path], object]
    allowed: tuple[type[Exception], ...]
    prepare: Callable[[Path], object] = Path.exists


def picture(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    planes = [(4 * y + x) % 256, (255 - 2 * y - x) % 256, (3 * x) % 256, (100 + 2 * y) % 256][:channels]
    return np.stack(planes, -1).astype(np.uint8)


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def images() -> dict[str, list[bytes]]:
    rgb, grey = Image.fromarray(picture()), Image.fromarray(picture()[..., 0])
    rgba, palette = Image.fromarray(picture(channels=4)), rgb.quantize(16)
    deep = Image.fromarray(picture()[..., 0].astype(np.uint16) << 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    matrix = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = b"P3\n# c\n4 2 255\n" + b"9 8 7 " * 8
    return {
        "png": [
            saved(rgb, "PNG"), saved(rgba, "PNG", exif=exif), saved(palette, "PNG", transparency=1), saved(deep, "PNG"),
            saved(rgb, "PNG", icc_profile=b"x" * 200), saved(grey.convert("1"), "PNG"),
            saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)]),
        ],
        "jpeg": [
            saved(rgb, "JPEG"), saved(rgb, "JPEG", progressive=True, exif=exif), saved(grey, "JPEG"),
            saved(rgb.convert("CMYK"), "JPEG"), saved(rgb, "JPEG", comment=b"c" * 50, icc_profile=b"x" * 200),
            saved(grey, "JPEG", quality=20, icc_profile=matrix), saved(rgb, "JPEG", quality=20, icc_profile=matrix),
        ],
        "webp": [saved(rgb, "WEBP"), saved(rgba, "WEBP", lossless=True, exif=exif)],
        "tiff": [
            saved(rgb, "TIFF"), saved(rgb, "TIFF", compression="tiff_lzw"), saved(grey, "TIFF", compression="packbits"),
            saved(rgb, "TIFF", compression="tiff_adobe_deflate", exif=exif), saved(deep, "TIFF"),
            saved(rgb, "TIFF", save_all=True, append_images=[rgb]), saved(palette, "TIFF"),
        ],
        "other": [
            saved(rgb, "BMP"), saved(palette, "BMP"), saved(palette, "GIF"), saved(rgb, "PPM"), saved(grey, "PPM"),
            saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)], comment=b"c" * 300),
        ],
        "isolated": [saved(rgb, "JPEG2000"), saved(grey, "JPEG2000"), saved(rgb, "TIFF", compression="jpeg"), plain],
    }  # fmt: skip


def read_image(data: bytes, folder: Path) -> None:
    pixels = decode_image(data, MAX_PIXELS).pixels
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    rgb_profile(data)


def damaged_image(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    out = damaged(data, others, rng)
    return with_checksums(out) if out.startswith(b"\x89PNG") and rng.random() < 0.8 else out


def a_list(folder: Path) -> None:
    for name in ("a.png", "sub/b c.png", "\u202ex.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(saved(Image.fromarray(picture()), "PNG"))


def read_images(folder: str) -> None:
    listing = find_images(folder)
    for row in listing.manifest.to_pylist()[:20]:
        ref = ImageRef.from_row(row)
        if ref.row >= 0 or os.path.isfile(ref.path):  # else three retries are waited for
            with_rejections(lambda ref=ref: read_encoded(ref, listing.filesystem, MAX_PIXELS))


def with_rejections(read: Callable[[], object]) -> None:
    with contextlib.suppress(RejectedImage):
        read()


def read_list(data: bytes, folder: Path) -> None:
    (folder / "list.txt").write_bytes(data)
    read_images(str(folder / "list.txt"))


def read_parquet(data: bytes, folder: Path) -> None:
    (folder / "a.parquet").write_bytes(data)
    listing = find_images(str(folder / "a.parquet"))
    for row in listing.manifest.slice(0, 3).to_pylist():
        with contextlib.suppress(RejectedImage, OSError, pa.ArrowException):  # as documented; the caller quarantines
            read_row(fs.LocalFileSystem(), row["path"], row["column"], row["row"])


def read_archive(data: bytes, folder: Path) -> None:
    name = "a.zip" if b"PK" in data else "a.tar"
    (folder / name).write_bytes(data)
    read_images(str(folder / name))


def archives() -> list[bytes]:
    made = []
    for mode in ("tar", "pax", "stored", "deflated"):
        sink = io.BytesIO()
        files = {"a.png": saved(Image.fromarray(picture()), "PNG"), "b\u00fc/" + 110 * "c" + ".jpg": b"x" * 700}
        if mode in ("tar", "pax"):
            with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT if mode == "tar" else None) as tar:
                for name, content in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        else:
            method = zipfile.ZIP_STORED if mode == "stored" else zipfile.ZIP_DEFLATED
            with zipfile.ZipFile(sink, "w", method) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        made.append(sink.getvalue())
    return made


def parquet_files() -> list[bytes]:
    png = saved(Image.fromarray(picture()), "PNG")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    structs = pa.array([{"bytes": png, "path": "a.png"}, {"bytes": None, "path": "b.png"}, None], kind)
    tables = [
        pa.table({"image": structs, "label": [1, 2, 3]}),
        pa.table({"raw": pa.array([png, png[:50], b""], pa.large_binary())}),
        pa.table({"raw": pa.array([png] * 40)}),
    ]
    ways: list[dict[str, Any]] = [
        {}, {"compression": "zstd", "row_group_size": 2}, {"use_dictionary": False, "data_page_version": "2.0"},
    ]  # fmt: skip
    files = []
    for table in tables:
        for options in ways:
            buffer = io.BytesIO()
            pq.write_table(table, buffer, **options)
            files.append(buffer.getvalue())
    return files


def read_yaml(data: bytes, folder: Path) -> None:
    (folder / "a.yaml").write_bytes(data)
    for model in (CondenseConfig, TrainConfig):
        with contextlib.suppress(BadRequest):
            load(model, folder / "a.yaml", {})


def yaml_files() -> list[bytes]:
    config = load(CondenseConfig, None, {"input": "a", "output": "b"}).to_yaml().encode()
    short = b"scale: 2\nratio: 0.1\nrlff:\n  bandwidths: [0.5, 1]\nteacher: null\n"
    return [config, short, b"a: &x [1, 2]\nb: *x\n"]


def checkpoints() -> list[bytes]:
    torch.manual_seed(0)
    small = {
        "edsr": {"channels": 4, "blocks": 1},
        "swinir": {"channels": 6, "blocks": 1, "layers": 1, "heads": 1, "window": 4, "image_size": 8},
    }
    files = []
    for name, arguments in small.items():
        spec = ModelSpec(name, 2, arguments)
        files.append(checkpoint_bytes(spec, spec.build().state_dict(), {"steps": 3}))
    files.append(safetensors.torch.save(basicsr()))
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        buffer = io.BytesIO()
        torch.save({"params_ema": basicsr(), "epoch": 3}, buffer, **options)
        files.append(buffer.getvalue())
    return files


def basicsr() -> dict[str, torch.Tensor]:
    """A state dict with BasicSR's names for an EDSR of 4 channels and one block."""

    def conv(name: str, out: int, inner: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.rand(out, inner, 3, 3), f"{name}.bias": torch.rand(out)}

    shapes = {
        "conv_first": (4, 3), "body.0.conv1": (4, 4), "body.0.conv2": (4, 4), "conv_after_body": (4, 4),
        "upsample.0": (16, 4), "conv_last": (3, 4),
    }  # fmt: skip
    return {name: tensor for key, shape in shapes.items() for name, tensor in conv(key, *shape).items()}


def damaged_checkpoint(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    if data[8:9] != b"{" or rng.random() < 0.3:
        return damaged(data, others, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    ours = header.get("__metadata__", {}).get("idc_ray")
    if ours is not None and rng.random() < 0.7:
        header["__metadata__"]["idc_ray"] = json.dumps(damaged_json(json.loads(ours), rng))
    else:
        header = damaged_json(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def read_checkpoint(data: bytes, folder: Path) -> None:
    teacher = load_teacher(data, scale=2)
    with torch.inference_mode():
        teacher.upscale(torch.rand(1, 3, 16, 16))


def first_tile(tiles: CondensedDataset) -> None:
    if len(tiles):
        tiles[0]


def record_of(name: str) -> Callable[[bytes, Path], None]:
    """A finished output of which one file is another."""

    def read(data: bytes, folder: Path) -> None:
        (folder / name).write_bytes(data)
        uri = str(folder)
        export = folder.parent / "export"
        shutil.rmtree(export, ignore_errors=True)
        for use in (
            lambda: read_status(resolve(uri)).as_dict(),
            lambda: first_tile(CondensedDataset(uri)),
            lambda: verify(uri, deep=True).as_dict(),
            lambda: export_set(resolve(uri), resolve(str(export))),
        ):
            with contextlib.suppress(IdcError):
                use()

    return read


def finished_file(name: str, folder: Path) -> bytes:
    if not folder.exists():
        condensed(folder)
    return (folder / name).read_bytes()


def damaged_record(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Damage, and edits that keep the checksum right."""
    if rng.random() < 0.2:
        return damaged(data, others, rng)
    value = json.loads(data)
    value.pop("sha256", None)
    value = damaged_json(value, rng)
    if isinstance(value, dict) and rng.random() < 0.9:
        try:
            return json_bytes(sealed(value))
        except ValueError:  # NaN
            pass
    return json.dumps(value).encode()


def all_readers(folder: Path) -> dict[str, Reader]:
    """By name; ``folder`` is for a finished output."""
    finished = folder / "finished"
    readers = {name: Reader(files, damaged_image, read_image, (RejectedImage,)) for name, files in images().items()}
    readers |= {
        "list": Reader(
            [b"a.png\nsub/b c.png\n# c\n../x.png\n", "\ufeffa.png\r\n./a.png\r\n".encode()],
            damaged_text, read_list, (BadRequest,), a_list,
        ),
        "archive": Reader(archives(), damaged, read_archive, (BadRequest,)),
        "parquet": Reader(parquet_files(), damaged, read_parquet, (BadRequest,)),
        "yaml": Reader(yaml_files(), damaged_text, read_yaml, ()),
        "checkpoint": Reader(checkpoints(), damaged_checkpoint, read_checkpoint, (BadRequest,)),
    }  # fmt: skip
    for name in ("run.json", "manifest.json"):
        readers[name] = Reader([finished_file(name, finished)], damaged_record, record_of(name), (), condensed)
    for name in ("shards/part-00000.parquet", "index/part-00000.parquet"):
        readers[Path(name).parent.name] = Reader(
            [finished_file(name, finished)], damaged, record_of(name), (), condensed
        )
    return readers
