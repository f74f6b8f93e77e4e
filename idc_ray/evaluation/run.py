"""The evaluation job: settings, and the one function that ``jobs/evaluate.py`` calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from idc_ray.config import Section
from idc_ray.errors import BadRequest
from idc_ray.evaluation.benchmarks import SetScores, evaluate, find_sets, format_table, write_metrics
from idc_ray.images import resize
from idc_ray.models import bundled_teacher_bytes, load_upscaler

__all__ = ["EvaluateConfig", "make_upscale", "run_evaluation"]

Image = NDArray[np.uint8]


class EvaluateConfig(Section):
    """Settings of the evaluation job."""

    model: str = Field(min_length=1)
    """A checkpoint (ours, or any that spandrel loads), or bundled, or bicubic."""
    benchmarks: str = Field(min_length=1)
    """Folder with SET/xS/HR and perhaps SET/xS/LR, or SET/HR; or one such set."""
    output: str = Field(min_length=1)
    """Folder for metrics.json; made if missing."""
    scale: int = Field(2, ge=2)
    """Upscaling factor."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: the GPU if there is one."""


def make_upscale(model: str, scale: int, device: str = "auto") -> Callable[[Image], Image]:
    """What to evaluate, as a function on 8-bit images.

    Args:
        model: a checkpoint's path, ``bundled`` or ``bicubic``. For a file of that very name write ``./bicubic``.
        scale: the factor.
        device: as in :class:`EvaluateConfig`; bicubic ignores it.

    Raises:
        BadRequest: the checkpoint cannot be used, or there is no such device.
    """
    if model == "bicubic":
        return lambda lr: resize.upscale(lr, scale)
    place = _device(device)
    if model == "bundled":
        return load_upscaler(
            bundled_teacher_bytes(scale), scale=scale, device=place, name="the bundled teacher"
        ).upscale_image
    return load_upscaler(Path(model), scale=scale, device=place).upscale_image


def run_evaluation(config: EvaluateConfig) -> dict[str, SetScores]:
    """Evaluate, print the table, write ``metrics.json``; what can be refused is refused before the first image."""
    sets = find_sets(config.benchmarks, config.scale)
    upscale = make_upscale(config.model, config.scale, config.device)
    output = Path(config.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRequest(f"--output {output} cannot be made ({error.strerror}); name a folder that can") from None
    results = evaluate(upscale, sets, config.scale, lambda name, file, s: print(f"{name} {file} {s['psnr']:.2f} dB"))
    print(f"\n{config.model} x{config.scale}\n{format_table(results)}")
    write_metrics(output / "metrics.json", results)
    print(f"written to {output / 'metrics.json'}")
    return results


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadRequest(f"--device {name} cannot be used ({str(error).splitlines()[0]}); use cpu or auto") from None
    return device
