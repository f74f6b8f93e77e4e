"""Shared code of the benchmarks: images, description of the machine, writing of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from idc_ray.photographs import photographs

__all__ = ["ROOT", "blocks", "machine", "mosaic", "parser", "write_pieces", "write_result"]

Picture = NDArray[np.uint8]

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = {".png", ".jpg", ".jpeg"}


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    out = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--output", type=Path, metavar="FILE.json", help="also write the figures to this file")
    out.add_argument("--quick", action="store_true", help="a check of about a minute; its figures mean nothing")
    out.add_argument("--input", type=Path, metavar="DIR", help="photographs; default: those of scikit-image")
    return out


def _files(folder: Path | None) -> list[Path]:
    if folder is None:
        return photographs()
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise SystemExit(f"no .png or .jpg in {folder}; give a folder of photographs")
    return found


def blocks(folder: Path | None, height: int, width: int, stride: int, count: int) -> list[Picture]:
    """``count`` crops (height, width, 3) of photographs, alternating between them; repeated if there are too few."""
    by_photograph = []
    for path in _files(folder):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        corners = [
            (top, left)
            for top in range(0, pixels.shape[0] - height + 1, stride)
            for left in range(0, pixels.shape[1] - width + 1, stride)
        ]
        by_photograph.append([pixels[top : top + height, left : left + width] for top, left in corners])
    deepest = max(map(len, by_photograph))
    pieces = [piece[i] for i in range(deepest) for piece in by_photograph if i < len(piece)]
    if not pieces:
        raise SystemExit(f"no photograph is as large as {width} x {height}; give larger ones with --input")
    return [pieces[i % len(pieces)] for i in range(count)]


def mosaic(folder: Path | None, height: int, width: int, cell: int = 256) -> Picture:
    """One large image composed of cells of photographs; its sides are multiples of ``cell``."""
    rows, columns = height // cell, width // cell
    cells = blocks(folder, cell, cell, cell, rows * columns)
    return np.concatenate([np.concatenate(cells[r * columns : (r + 1) * columns], axis=1) for r in range(rows)])


def write_pieces(source: Path | None, target: Path, count: int) -> Path:
    """``count`` PNG files of 480 x 320 pixels, cut from photographs, in the new folder ``target``."""
    target.mkdir(parents=True)
    for index, piece in enumerate(blocks(source, 320, 480, 100, count)):
        Image.fromarray(piece).save(target / f"{index:05d}.png")
    return target


def machine() -> dict[str, Any]:
    """Description of the machine, including its load."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def write_result(name: str, arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write figures, machine and arguments as JSON to ``--output``."""
    if arguments.output is None:
        return
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    result = {"benchmark": name, "machine": machine(), "arguments": settings, "figures": figures}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {arguments.output}")
