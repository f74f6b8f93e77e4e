"""A small random teacher and a small image: the algebra does not need a trained network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from idc_ray.condensation.crops import Crops
from idc_ray.condensation.fixed_batches import FixedBatches
from idc_ray.condensation.rlff import FrequencyBank, draw_bank
from idc_ray.condensation.targets import RealImage, measure_image
from idc_ray.condensation.teacher_features import FeatureReader
from idc_ray.config import CondenseConfig, load_config
from idc_ray.models.edsr import EDSR
from idc_ray.models.teacher import Teacher

BATCHES = FixedBatches(2)

SETTINGS: dict[str, object] = {
    "tile_size": 16,
    "ratio": 0.3,
    "iterations": 4,
    "matching": "both",  # so that everything takes part
    "teacher_batch_size": 2,
    "rlff.num_frequencies": 16,
    "rlff.num_held_out": 16,
    "rlff.num_sets": 2,
    "rlff.padding": 2,
}


def small_config(**overrides: object) -> CondenseConfig:
    return load_config(None, SETTINGS | {k.replace("__", "."): v for k, v in overrides.items()})


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(EDSR(2, channels=8, blocks=2), scale=2, name="random", sha256="0" * 64)


@pytest.fixture(scope="session")
def reader(teacher: Teacher) -> FeatureReader:
    return FeatureReader(teacher, tile=16, padding=2, kernel=3)


@pytest.fixture(scope="session")
def bank() -> FrequencyBank:
    return draw_bank(0, 8, 3, (0.5, 1.0, 2.0, 4.0), num_sets=2, num_frequencies=16, num_held_out=16)


def picture(height: int = 52, width: int = 70, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth in one half, rough in the other: uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    smooth = 120 + 60 * np.sin(y / 9) + 40 * np.cos(x / 11)
    rough = random.normal(0, 60, (height, width)) * (x > width // 2)
    channels = [smooth + rough, 0.8 * smooth + rough / 2, smooth[::-1] + rough / 3]
    return np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8)


def as_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def measured(
    reader: FeatureReader,
    bank: FrequencyBank,
    lr: torch.Tensor,
    hardness: torch.Tensor,
    gamma: float = 1.0,
    clip: float = 99,
    batches: FixedBatches = BATCHES,
) -> RealImage:
    """The real side of an image, uint8 (3, H, W)."""
    crops = Crops(reader, lr, batches)
    return measure_image(crops, bank, hardness, crops.weighting(hardness, gamma, 0.01, clip))[0]


def literal_gradient(image: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sobel's operator on the luma of (3, H, W), pixel by pixel, where all neighbours exist: (H - 2, W - 2)."""
    luma = np.einsum("c,chw->hw", [0.299, 0.587, 0.114], image.astype(np.float64))
    out = np.empty((luma.shape[0] - 2, luma.shape[1] - 2))
    for y, x in np.ndindex(*out.shape):
        block = luma[y : y + 3, x : x + 3]
        across = (block[:, 2] - block[:, 0]) @ [1, 2, 1]
        down = [1, 2, 1] @ (block[2] - block[0])
        out[y, x] = np.hypot(across, down) / 8
    return out
