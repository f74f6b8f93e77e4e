"""bfloat16 training: convolutions and linear layers compute in bfloat16, the optimiser keeps float32 weights."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]

#: Modules with bfloat16 weights in the copy: those that autocast would cast at every call.
CAST = (nn.Conv2d, nn.Linear)


def choose_precision(setting: str, device: torch.device, model: str = "") -> Precision:
    """Resolve the setting ``auto``: bfloat16 if training ``model``, a name, is at least 1.5 times as fast with it.

    CPUs need AMX or AVX512-BF16; others emulate bfloat16 slowly. There MambaIRv2 spends most of its time in scans,
    which are float32, and is hardly faster (figures in benchmarks/README.md).
    """
    if setting == "float32":
        return "float32"
    if setting == "bfloat16":
        return "bfloat16"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        fast = supported and not model.startswith("mambairv2")
    return "bfloat16" if fast else "float32"


class LowPrecisionCopy:
    """A copy of a network with bfloat16 weights in convolutions and linear layers.

    All weights are cast by one call per step, while autocast casts each weight, and its gradient, by a separate kernel.
    All other parameters and all buffers are shared with ``model``.

    Args:
        model: float32 network whose parameters the optimiser updates.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model)
        made: dict[nn.Parameter, nn.Parameter] = {}  # several modules may share a parameter
        for original, copied in zip(model.modules(), self.module.modules(), strict=True):
            copied._buffers.update(original._buffers)
            for name, parameter in original._parameters.items():
                if parameter is not None and isinstance(original, CAST):
                    if parameter not in made:
                        made[parameter] = nn.Parameter(parameter.detach().to(torch.bfloat16))
                    copied._parameters[name] = made[parameter]
                else:
                    copied._parameters[name] = parameter
        self._masters: list[Tensor] = list(made)
        self._casts: list[Tensor] = list(made.values())
        self._gradients = [torch.empty_like(parameter) for parameter in self._masters]

    @torch.no_grad()
    def read_weights(self) -> None:
        """Cast the current weights, and clear the gradients."""
        torch._foreach_copy_(self._casts, self._masters)
        for cast in self._casts:
            cast.grad = None

    @torch.no_grad()
    def copy_gradients(self) -> None:
        """Copy the gradients to the parameters of ``model``, in float32."""
        targets, sources = [], []
        for master, cast, gradient in zip(self._masters, self._casts, self._gradients, strict=True):
            master.grad = None if cast.grad is None else gradient  # None: the layer was not used
            if cast.grad is not None:
                targets.append(gradient)
                sources.append(cast.grad)
        torch._foreach_copy_(targets, sources)
