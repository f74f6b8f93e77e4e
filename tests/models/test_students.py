"""What a CUDA graph asks of a training step, without a GPU: no value comes to the host, nothing is made there."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idc_ray.models import create_model

STUDENTS = ["edsr_baseline", "swinir_light", "mambairv2_light"]

#: Operations whose result has a size that depends on values, or is a value on the host.
SYNCHRONISING = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal"}


class Recorder(TorchDispatchMode):
    """Names of all operations, and the devices of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.add(func.name().removeprefix("aten::").split(".")[0])
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        self.devices |= {tensor.device.type for tensor in tensors}
        return result


def recorded_step(model: nn.Module, x: Tensor) -> Recorder:
    with Recorder() as recorder:
        model(x).square().mean().backward()
    return recorder


@pytest.mark.parametrize("name", STUDENTS)
def test_no_value_comes_to_the_host(name: str) -> None:
    """Catches an ``item``, a boolean index, or a test of a tensor in a training step, padding included."""
    recorder = recorded_step(create_model(name, 2).train(), torch.rand(1, 3, 20, 32))
    assert "convolution_backward" in recorder.names
    assert recorder.names & SYNCHRONISING == set()


@pytest.mark.parametrize("name", STUDENTS)
def test_nothing_is_made_on_the_host(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Catches masks, index tables or factors that are copied to the device in each step."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device "meta"
    with torch.device("meta"):
        model = create_model(name, 2).train()
    recorder = recorded_step(model, torch.empty(1, 3, 20, 32, device="meta"))
    assert recorder.devices == {"meta"}
