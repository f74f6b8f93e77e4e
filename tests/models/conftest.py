"""Small networks and the optional spandrel."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from idc_ray.models import EDSR, ModelSpec, Teacher, checkpoint_bytes
from idc_ray.models.spandrel_import import import_spandrel


def save_checkpoint(path: Path, spec: ModelSpec, state_dict: dict[str, torch.Tensor], notes: Any = None) -> None:
    path.write_bytes(checkpoint_bytes(spec, state_dict, notes))


@pytest.fixture(scope="session")
def spandrel() -> ModuleType:
    """The module, by way of our import: plain ``import spandrel`` fails next to a CPU-only torch."""
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("the optional extra 'teachers' is not installed")
    return import_spandrel()


@pytest.fixture
def edsr() -> EDSR:
    torch.manual_seed(0)
    return EDSR(2, channels=8, blocks=3)


@pytest.fixture
def teacher(edsr: nn.Module) -> Teacher:
    return Teacher(edsr, scale=2, name="tiny", sha256="0" * 64)


@pytest.fixture
def image() -> torch.Tensor:
    """Two images (2, 3, 12, 20) in [0, 1]: not square, so that swapped sides show."""
    return torch.rand((2, 3, 12, 20), generator=torch.Generator().manual_seed(1))
