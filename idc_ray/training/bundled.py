"""Makes a bundled teacher: a small EDSR distilled from a large network on photographs.

python -m idc_ray.training.bundled --images DIR --scale 2 --labels-from TEACHER --output FILE
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from idc_ray.cli import parse, run_job
from idc_ray.config import Section
from idc_ray.errors import BadRequest, RejectedImage
from idc_ray.images.find import IMAGE_ENDINGS
from idc_ray.images.read import decode_rgb
from idc_ray.images.resize import downscale
from idc_ray.models import EDSR, ModelSpec, Upscaler, load_upscaler, save_checkpoint
from idc_ray.models.interpolation_start import interpolation_start
from idc_ray.training.loop import TrainSettings, train
from idc_ray.training.pairs import PairSampler

__all__ = ["BundledConfig", "bundled_spec", "labelled_pairs", "make_bundled", "notes"]

MAX_PIXELS = 100_000_000

Pair = tuple[Tensor, Tensor]
OnStep = Callable[[int, float, dict[str, Tensor]], None]


class BundledConfig(Section):
    """Settings of the training of a bundled teacher; the defaults made the ones in the package (all ours)."""

    images: str = Field(min_length=1)
    """Folder of photographs; every image directly in it is used."""
    labels_from: str = Field(min_length=1)
    """Checkpoint of the network whose outputs are learnt."""
    output: str = Field(min_length=1)
    """Checkpoint to write."""
    scale: int = Field(2, ge=2, le=4)
    """Upscaling factor."""
    iterations: int = Field(10_000, ge=1)
    """Optimiser steps."""
    patch_size: int | None = Field(None, ge=1)
    """Side of a patch, LR pixels; null: 32 at x2, 24 otherwise."""
    seed: int = 0
    """Of the weights and of the patches."""

    @property
    def patch(self) -> int:
        """The patch size that is meant."""
        return self.patch_size or (32 if self.scale == 2 else 24)


def bundled_spec(scale: int) -> ModelSpec:
    """The bundled teachers' architecture: EDSR, 6 blocks of 32 channels; 0.16 M parameters at x2, 0.20 M at x4."""
    return ModelSpec("edsr", scale, {"channels": 32, "blocks": 6})


def notes(config: BundledConfig, images: int) -> dict[str, Any]:
    """What the checkpoint says about its origin; no paths of the machine that made it."""
    return {
        "data": f"{images} photographs of {Path(config.images).name}",
        "labels": f"outputs of {Path(config.labels_from).name} for whole MATLAB-style bicubic LR images, 8 bits",
        "training": "idc_ray.training.bundled",
        "iterations": config.iterations,
        "patch_size": config.patch,
        "batch_size": 16,
        "seed": config.seed,
    }


def labelled_pairs(folder: str | Path, scale: int, teacher: Upscaler) -> list[Pair]:
    """LR images and the teacher's 8-bit outputs for them, uint8 (3, h, w) and (3, scale h, scale w), by file name.

    Raises:
        BadRequest: no images in the folder, or one that cannot be read.
    """
    paths = [path for path in Path(folder).glob("*") if path.suffix[1:].lower() in IMAGE_ENDINGS]
    if not paths:
        raise BadRequest(f"no images in --images {folder}; name a folder that holds some, not one of folders")
    pairs = []
    for path in sorted(paths):
        try:
            hr = decode_rgb(path.read_bytes(), MAX_PIXELS)
        except RejectedImage as error:
            raise BadRequest(f"{path} cannot be used: {error.reason}; remove it") from None
        lr = downscale(hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale], scale)
        label = teacher.upscale_image(lr)
        pairs.append((torch.from_numpy(lr).permute(2, 0, 1), torch.from_numpy(label).permute(2, 0, 1)))
    return pairs


def make_bundled(config: BundledConfig, on_step: OnStep | None = None) -> None:
    """Label, train and write the checkpoint. The same settings on the same kind of CPU give the same file."""
    torch.set_num_threads(1)  # float sums depend on the number of threads
    pairs = labelled_pairs(config.images, config.scale, load_upscaler(config.labels_from, scale=config.scale))
    print(f"{len(pairs)} images labelled", flush=True)
    spec = bundled_spec(config.scale)
    torch.manual_seed(config.seed)
    model = spec.build()
    assert isinstance(model, EDSR)
    interpolation_start(model)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPUs
    sampler = PairSampler(pairs, config.scale, config.patch, torch.Generator().manual_seed(config.seed))
    settings = TrainSettings(iterations=config.iterations, batch_size=16, learning_rate=1e-3)
    weights = train(model, sampler, settings, on_step)
    save_checkpoint(config.output, spec, weights, notes(config, len(pairs)))


def main(argv: Sequence[str]) -> int:
    """Parse, train, exit code."""
    config = parse(BundledConfig, argv, "Trains a small EDSR on another network's outputs.")

    def report(step: int, loss: float, _: dict[str, Tensor]) -> None:
        if step % 250 == 0:
            print(f"step {step} of {config.iterations}: L1 {loss:.5f}", flush=True)

    make_bundled(config, report)
    print(f"written to {config.output}")
    return 0


if __name__ == "__main__":
    run_job(main)
