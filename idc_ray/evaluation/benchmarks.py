"""Benchmark sets: finding them on disk, and scoring a network on them."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from idc_ray.degradation import BICUBIC, Degrade
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.evaluation.metrics import WINDOW, border, mean_psnr, psnr, ssim_y
from idc_ray.images.find import IMAGE_ENDINGS
from idc_ray.images.manifest import image_id
from idc_ray.images.read import decode_rgb, header_size
from idc_ray.regular_files import open_regular
from idc_ray.store.filesystem import StorageFolder

log = logging.getLogger(__name__)

#: Most pixels of one benchmark image; the largest sets in use have 12 million.
MAX_PIXELS = 100_000_000

#: Suffixes of DIV2K's folders.
HR_ENDING, LR_ENDING = "_HR", "_LR_bicubic"

#: Scales that benchmarks are made for.
SCALES = (1, 2, 3, 4)

#: Names of folders with LR images, which are not sets of HR images.
_LR_NAME = re.compile(r"(.*_)?LR.*", re.IGNORECASE)

Image = NDArray[np.uint8]


class Scores(TypedDict):
    """PSNR in dB, on Y, and of RGB at scale 1; SSIM on Y."""

    psnr: float
    ssim: float


class SetScores(Scores):
    """Means over a set's images, and each image's scores by file name."""

    images: dict[str, Scores]


@dataclass(frozen=True)
class BenchmarkImage:
    """One image of a set.

    Attributes:
        hr: file of the ground truth.
        lr: file of the input; None: made of the ground truth.
    """

    hr: Path
    lr: Path | None

    def read(self, scale: int, degrade: Degrade = BICUBIC) -> tuple[Image, Image]:
        """Input and mod-cropped ground truth: uint8 (h, w, 3) and (scale h, scale w, 3).

        The input is read from ``lr``; without it, or with another degradation than bicubic, it is made of the ground
        truth, whose id is that of its file name.

        Raises:
            BadRequest: an unreadable file, or an input of the wrong size.
        """
        hr = _read(self.hr)
        height, width = hr.shape[0] // scale, hr.shape[1] // scale
        hr = hr[: height * scale, : width * scale]
        if self.lr is None or degrade.steps != "bicubic":
            return degrade(hr, scale, image_id(self.hr.name)), hr
        lr = _read(self.lr)
        if lr.shape != (height, width, 3):
            raise BadRequest(
                f"{self.lr} has {lr.shape[1]} x {lr.shape[0]} pixels; expected {width} x {height}, the size of "
                f"{self.hr} divided by {scale}"
            )
        return lr, hr

    def size(self) -> tuple[int, int]:
        """Width and height of the ground truth, from the file's header.

        Raises:
            BadRequest: an unreadable file.
        """
        try:
            return header_size(_content(self.hr))
        except (OSError, RejectedImage) as error:
            raise BadRequest(f"benchmark image {self.hr} cannot be read: {error}") from None


@dataclass(frozen=True)
class BenchmarkSet:
    """A named set of images, sorted by file name."""

    name: str
    images: tuple[BenchmarkImage, ...]


def find_sets(folder: str | Path, scale: int) -> list[BenchmarkSet]:
    """The benchmark sets in a folder, sorted by name.

    A set is a folder with HR images in ``xS/HR`` (S is the scale), ``HR``, or BasicSR's ``GTmod12`` or ``GTmodS``, and
    optionally LR images in a sibling folder ``LR``, ``LR/XS``, ``LRbicxS`` or ``LR_bicubic/XS``. LR files have the HR
    file's name, or its stem followed by ``xS``; extensions may differ. DIV2K's layout is also known: a folder
    ``NAME_HR`` with images and optionally a sibling folder ``NAME_LR_bicubic/XS``. ``folder`` may be one set, contain
    several, or be a plain folder of HR images or of such folders.

    Raises:
        BadRequest: no such folder, no set for this scale, or an HR image without its file in the LR folder.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise BadRequest(f"--benchmarks {folder} is not a folder; give one that contains SET/x{scale}/HR or SET/HR")
    itself = _read_set(folder, scale)
    if itself is not None:
        return [itself]
    # x3 and x4 inside a set have the layout of a set, but are for another scale.
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not re.fullmatch(r"x\d+", path.name))
    sets = [found for path in paths if (found := _read_set(path, scale)) is not None]
    if not sets:
        plain = [folder] if _images(folder) else [path for path in paths if _LR_NAME.fullmatch(path.name) is None]
        sets = [_without_lr(path.name, images) for path in plain if (images := _images(path))]
    if not sets:
        raise BadRequest(
            f"no benchmark set for scale {scale} in {folder}; expected SET/x{scale}/HR with images, SET/HR, SET with "
            "images, or images in the folder itself"
        )
    names = {each.name for each in sets}
    left_out = [path.name for path in paths if path.name not in names and _hr_of(path) not in names]
    if left_out:
        log.warning("%s: no images for scale %d in %s", folder, scale, ", ".join(left_out))
    return sets


def find_all_sets(folders: Sequence[str], scale: int, setting: str) -> list[BenchmarkSet]:
    """The sets of several folders, in which every image is large enough to be scored.

    Args:
        folders: see :func:`find_sets`.
        scale: the factor.
        setting: name of the setting with the folders, for messages.

    Raises:
        BadRequest: see :func:`find_sets`; two sets with the same name; an image that cannot be read or is too small.
    """
    sets = [each for folder in folders for each in find_sets(folder, scale)]
    names = [each.name for each in sets]
    for name in names:
        if names.count(name) > 1:
            raise BadRequest(f"{setting} has two sets named {name}; rename one of the folders")
    for each in sets:
        for image in each.images:
            check_size(str(image.hr), image.size(), scale)
    return sets


def check_size(name: str, size: tuple[int, int], scale: int) -> None:
    """Raise BadRequest for an HR image, width x height, that is too small for SSIM's window after the border crop."""
    least = WINDOW + 2 * border(scale)
    cropped = [side // scale * scale for side in size]
    if min(cropped) < least:
        raise BadRequest(
            f"{name} has {size[0]} x {size[1]} pixels, too few to be scored; expected sides of at least "
            f"{-(-least // scale) * scale} at scale {scale}: remove it"
        )


def paired_folders(folder: str | Path, scale: int) -> tuple[Path, Path | None] | None:
    """HR folder and optional LR folder of a set with a layout of :func:`find_sets`; None if ``folder`` is not a set."""
    folder = Path(folder).absolute()
    return _folders(folder, scale) if folder.is_dir() else None


def holds_sets(folder: str | Path) -> bool:
    """Whether a folder is or contains a benchmark set for any scale, rather than being a plain folder of images."""
    folder = Path(folder).absolute()
    paths = [folder, *(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    return any(_hr_folder(path, scale) is not None for path in paths for scale in SCALES)


def evaluate(
    upscale: Callable[[Image], Image],
    sets: Sequence[BenchmarkSet],
    scale: int,
    on_image: Callable[[str, str, Scores, Image], None] | None = None,
    degrade: Degrade = BICUBIC,
) -> dict[str, SetScores]:
    """Scores of whole images, by the protocol of :mod:`idc_ray.evaluation.metrics`.

    Args:
        upscale: uint8 (h, w, 3) to uint8 (scale h, scale w, 3).
        sets: from :func:`find_sets`.
        scale: upscaling factor, and number of pixels dropped at each border.
        on_image: called after each image with the set's name, the file's name, the scores and the output.
        degrade: see :meth:`BenchmarkImage.read`.

    Returns:
        Scores by set name. The mean PSNR excludes images that were reproduced exactly; it is infinite if all were.
    """
    results: dict[str, SetScores] = {}
    for benchmark in sets:
        images: dict[str, Scores] = {}
        for image in benchmark.images:
            lr, hr = image.read(scale, degrade)
            sr = upscale(lr)
            scores = images[image.hr.name] = score_image(str(image.hr), sr, hr, scale)
            if on_image is not None:
                on_image(benchmark.name, image.hr.name, scores, sr)
        results[benchmark.name] = {**mean_scores(images.values()), "images": images}
    return results


def score_image(name: str, sr: Image, hr: Image, scale: int) -> Scores:
    """Scores of an output against the ground truth, both uint8 (H, W, 3), by the benchmark protocol.

    Raises:
        BadRequest: they differ in size or are too small; ``name`` is in the message.
    """
    try:
        return {"psnr": psnr(sr, hr, scale), "ssim": ssim_y(sr, hr, border(scale))}
    except ValueError as error:
        raise BadRequest(f"{name}: {error}") from None


def mean_scores(scores: Collection[Scores]) -> Scores:
    """Means over images; that of PSNR by :func:`idc_ray.evaluation.metrics.mean_psnr`."""
    return {
        "psnr": mean_psnr(each["psnr"] for each in scores), "ssim": float(np.mean([each["ssim"] for each in scores]))
    }  # fmt: skip


def write_metrics(storage: StorageFolder, results: dict[str, SetScores]) -> None:
    """Write ``metrics.json`` atomically. An infinite PSNR becomes null, as JSON has no infinity."""
    finite = {
        name: {**_finite(scores), "images": {file: _finite(each) for file, each in scores["images"].items()}}
        for name, scores in results.items()
    }
    storage.write("metrics.json", (json.dumps(finite, indent=2, allow_nan=False) + "\n").encode())


def write_csv(storage: StorageFolder, results: dict[str, SetScores]) -> None:
    """Write ``metrics.csv`` with columns set, image, psnr, ssim; a set's mean is a row with an empty image."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["set", "image", "psnr", "ssim"])
    for name, scores in results.items():
        for file, each in scores["images"].items():
            writer.writerow([name, file, each["psnr"], each["ssim"]])
        writer.writerow([name, "", scores["psnr"], scores["ssim"]])
    storage.write("metrics.csv", stream.getvalue().encode())


def format_table(results: dict[str, SetScores]) -> str:
    """A table for a terminal: set, number of images, PSNR, SSIM."""
    width = max(len("set"), *(len(name) for name in results))
    lines = [f"{'set':{width}}  images     PSNR   SSIM Y"]
    for name, scores in results.items():
        lines.append(f"{name:{width}}  {len(scores['images']):6}  {scores['psnr']:7.2f}  {scores['ssim']:7.4f}")
    return "\n".join(lines)


def _read_set(path: Path, scale: int) -> BenchmarkSet | None:
    folders = _folders(path, scale)
    if folders is None:
        return None
    hr_folder, lr_folder = folders
    hr_files = _images(hr_folder)
    if lr_folder is None:
        return _without_lr(path.name, hr_files)
    partners = _partners(hr_files, _images(lr_folder), scale)
    missing = [hr.name for hr, lr in zip(hr_files, partners, strict=True) if lr is None]
    if missing:
        raise BadRequest(
            f"{lr_folder} lacks {len(missing)} of the {len(hr_files)} files of {hr_folder}, such as {missing[0]}; "
            "add the missing LR images, or remove the LR folder to have all generated"
        )
    return BenchmarkSet(path.name, tuple(map(BenchmarkImage, hr_files, partners)))


def _without_lr(name: str, hr_files: Sequence[Path]) -> BenchmarkSet:
    return BenchmarkSet(name, tuple(BenchmarkImage(hr, None) for hr in hr_files))


def _folders(path: Path, scale: int) -> tuple[Path, Path | None] | None:
    """HR and LR folder of a set, both with images; None if it is not a set."""
    hr_folder = _hr_folder(path, scale)
    if hr_folder is None:
        return None
    if hr_folder == path:
        siblings = [f"{path.name.removesuffix(HR_ENDING)}{LR_ENDING}/X{scale}"]
    else:
        siblings = ["LR", f"LRbicx{scale}", *(f"{name}/{x}{scale}" for name in ("LR", "LR_bicubic") for x in "Xx")]
    return hr_folder, _first_with_images(hr_folder.parent, siblings)


def _hr_folder(path: Path, scale: int) -> Path | None:
    """The folder of a set's HR images; None if it is not a set or has no images."""
    inside = _first_with_images(path, (f"x{scale}/HR", "HR", "GTmod12", f"GTmod{scale}"))
    if inside is None and path.name.endswith(HR_ENDING) and _images(path):
        return path
    return inside


def _hr_of(path: Path) -> str:
    """Name of the set to which a sibling folder with LR images belongs."""
    return path.name.removesuffix(LR_ENDING) + HR_ENDING


def _first_with_images(path: Path, names: Sequence[str]) -> Path | None:
    return next((path / name for name in names if _images(path / name)), None)


def _partners(hr_files: Sequence[Path], lr_files: Sequence[Path], scale: int) -> list[Path | None]:
    """The LR image of each HR image: with the same name, else the same stem, with or without ``xS``."""
    by_name = {path.stem: path for path in lr_files} | {path.name: path for path in lr_files}
    names = [(hr.name, f"{hr.stem}x{scale}{hr.suffix}", hr.stem, f"{hr.stem}x{scale}") for hr in hr_files]
    return [next((by_name[name] for name in each if name in by_name), None) for each in names]


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.suffix[1:].lower() in IMAGE_ENDINGS)


def _read(path: Path) -> Image:
    try:
        return decode_rgb(_content(path), MAX_PIXELS)
    except (OSError, RejectedImage) as error:
        raise BadRequest(f"benchmark image {path} cannot be read: {error}") from None


def _content(path: Path) -> bytes:
    with open_regular(str(path)) as file:
        return file.read()


def _finite(scores: Scores) -> dict[str, object]:
    return {"psnr": scores["psnr"] if math.isfinite(scores["psnr"]) else None, "ssim": scores["ssim"]}
