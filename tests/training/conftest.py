"""Small pictures that are learnt within a few steps, and a small network."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from idc_ray.config import load
from idc_ray.config.train import TrainConfig
from idc_ray.training.pairs import Pair, PairTable, Patches

SETTINGS: dict[str, object] = {
    "model_arguments": {"channels": 8, "blocks": 1},
    "batch_size": 4,
    "patch_size": 8,
    "iterations": 12,
    "checkpoint_every": 4,
    "channels_last": False,
    "optimizer.learning_rate": 5e-3,
    "workers.threads": 1,
    "mlflow.enabled": False,
}


def toy_config(**overrides: object) -> TrainConfig:
    return load(TrainConfig, None, SETTINGS | {k.replace("__", "."): v for k, v in overrides.items()})


def toy_pairs(count: int = 3, side: int = 24, scale: int = 2) -> list[Pair]:
    """Smooth pictures whose HR is their LR, enlarged bilinearly."""
    noise = torch.rand((count, 3, 6, 6), generator=torch.Generator().manual_seed(7))
    lr = (nn.functional.interpolate(noise, size=(side, side), mode="bicubic").clamp(0, 1) * 255).byte()
    hr = nn.functional.interpolate(lr.float(), scale_factor=scale, mode="bilinear").round().byte()
    as_image = [np.ascontiguousarray(t.permute(0, 2, 3, 1).numpy()) for t in (lr, hr)]
    return [Pair(f"picture {i}", *images) for i, images in enumerate(zip(*as_image, strict=True))]


def toy_patches(config: TrainConfig, seed: int | None = None) -> Patches:
    table = PairTable.build(toy_pairs(scale=config.scale), config.scale)
    return Patches(table, config.patch_size, config.batch_size, config.seed if seed is None else seed)
