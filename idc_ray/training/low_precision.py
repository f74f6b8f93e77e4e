"""bfloat16 training: convolutions and linear layers compute in bfloat16, the optimiser keeps float32 weights."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["LowPrecisionCopy", "Precision", "choose_precision"]

Precision = Literal["float32", "bfloat16"]

#: Modules whose weights the copy holds in bfloat16: those that autocast would cast at every call.
CAST = (nn.Conv2d, nn.Linear)


def choose_precision(setting: str, device: torch.device) -> Precision:
    """``auto`` as a precision: bfloat16 where the hardware multiplies it faster than float32.

    On CPUs that is AMX or AVX512-BF16 (benchmarks/README.md has the figures); elsewhere they emulate it, slowly.
    """
    if setting == "float32":
        return "float32"
    if setting == "bfloat16":
        return "bfloat16"
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


class LowPrecisionCopy:
    """A network that shares everything with ``model`` but the weights of its convolutions and linear layers.

    Those are bfloat16 here, and cast by one call a step: under autocast alone each would be cast by a kernel of its
    own at every step, and its gradient back. All other parameters and all buffers are the very tensors of ``model``.

    Args:
        model: float32 network; its parameters are what an optimiser updates.
    """

    def __init__(self, model: nn.Module) -> None:
        self.module = copy.deepcopy(model)
        made: dict[nn.Parameter, nn.Parameter] = {}  # a parameter may be that of several modules
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
        """Cast the weights as they are now, and forget the gradients of before."""
        torch._foreach_copy_(self._casts, self._masters)
        for cast in self._casts:
            cast.grad = None

    @torch.no_grad()
    def return_gradients(self) -> None:
        """Give ``model``'s parameters the gradients of the copy's, in float32."""
        own, given = [], []
        for master, cast, gradient in zip(self._masters, self._casts, self._gradients, strict=True):
            master.grad = None if cast.grad is None else gradient  # none: the layer had no part in the output
            if cast.grad is not None:
                own.append(gradient)
                given.append(cast.grad)
        torch._foreach_copy_(own, given)
