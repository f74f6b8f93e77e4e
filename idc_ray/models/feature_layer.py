"""Finding the teacher's feature layer: the last map at LR resolution before the upsampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idc_ray.errors import BadRequest
from idc_ray.models.registry import nearest

#: Usual names of the convolution that ends the trunk.
KNOWN_LAYERS = (
    "conv_after_body",  # EDSR, SwinIR, Swin2SR, HAT, DAT, RGT, ATD, DRCT, GRL, CRAFT
    "LR_conv",  # DCTLSA, IMDN, RFDN
    "conv_body",  # RRDBNet (ESRGAN), MM-RealSR
    "trunk_conv",  # RRDBNet in its first naming
)

#: Sizes of the probe images, not square, so that an attention matrix is not mistaken for a map. Windowed networks pad
#: to multiples of their window: the first size suits windows of 2, 4, 8, 16 and 32, the second U-Nets such as SCUNet,
#: the third windows of 7 and 14.
_PROBES = ((32, 64), (64, 128), (28, 42))


@dataclass(frozen=True)
class _Event:
    """One computed tensor: a module's output or, with an empty ``module``, the result of a function that enlarges."""

    module: str
    is_conv: bool
    shape: tuple[int, ...]
    rearranged: bool = False


def resolve_feature_layer(
    model: nn.Module, layer: str, fitting: Callable[[int], int] = lambda side: side
) -> tuple[str, int]:
    """Name and number of channels of the feature layer.

    Args:
        model: a frozen network, RGB (B, 3, h, w) in.
        layer: a module's name, or ``auto``: a module with a known name, otherwise the last output at LR resolution
            before the first upsampling that has as many channels as the first convolution's output. The convolution
            before a pixel shuffle is never chosen.
        fitting: rounds a side up to one that the network accepts.

    Raises:
        BadRequest: no such module (with similar names), its output is not a map at LR resolution (with the
            shape), or no suitable module is found.
    """
    if layer != "auto":
        return layer, _named(model, layer, fitting)
    top_level = dict(model.named_children())
    for name in KNOWN_LAYERS:
        if name in top_level:
            try:
                return name, _named(model, name, fitting)
            except BadRequest:
                continue  # some networks use the name for other outputs, such as tokens
    return _by_structure(model, fitting)


def _named(model: nn.Module, layer: str, fitting: Callable[[int], int]) -> int:
    """Channels of a named layer's output, which must be a map at LR resolution."""
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        raise BadRequest(f"the network has no layer {layer!r}; {nearest(layer, names)}")
    shape: object = "no output: it is not used"
    for size in _probe_sizes(fitting):
        outputs = _record(model, size, [layer])
        if outputs:
            shape = outputs[0].shape
            if _is_lr_map(outputs[0].shape, size):
                return outputs[0].shape[1]
    raise BadRequest(
        f"feature layer {layer!r} gives {shape} for an image of shape {(1, 3, *size)}; "
        f"expected a map (1, channels, {size[0]}, {size[1]}) at LR resolution: name a layer before the upsampler"
    )


def _by_structure(model: nn.Module, fitting: Callable[[int], int]) -> tuple[str, int]:
    for size in _probe_sizes(fitting):
        events = _record(model, size)
        end = next((i for i, event in enumerate(events) if not event.module), len(events))
        if end < len(events) and events[end].rearranged:
            # The convolution before a pixel shuffle gives 4 or 16 values for each pixel, not features.
            end = next((i for i in reversed(range(end)) if events[i].is_conv), 0)
        maps = [event for event in events[:end] if _is_lr_map(event.shape, size)]
        # More than 3 channels: EDSR's original code subtracts the mean colour with a convolution.
        width = next((event.shape[1] for event in maps if event.is_conv and event.shape[1] > 3), None)
        calls = [event.module for event in events]
        # A module that runs several times, such as a shared activation, is ambiguous.
        found = [event for event in maps if event.shape[1] == width and calls.count(event.module) == 1]
        if found:
            return found[-1].module, found[-1].shape[1]
    raise BadRequest(
        "no feature layer was found in the network: before the upsampler, no module gives a map at LR resolution with "
        "as many channels as the first convolution (the network may pad its input); name a layer with "
        "--rlff.feature-layer, such as body.3"
    )


def _probe_sizes(fitting: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    for height, width in _PROBES:
        height = fitting(height)
        yield height, max(fitting(width), fitting(height + 1))


def _is_lr_map(shape: Sequence[int], size: tuple[int, int]) -> bool:
    return len(shape) == 4 and shape[0] == 1 and tuple(shape[2:]) == size


@torch.no_grad()
def _record(model: nn.Module, size: tuple[int, int], layers: Sequence[str] | None = None) -> list[_Event]:
    """Run a probe image; record the outputs of ``layers`` (None: all modules) and of enlarging functions, in order."""
    events: list[_Event] = []
    names = {module: name for name, module in model.named_modules() if name and (layers is None or name in layers)}

    def on_output(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            events.append(_Event(names[module], isinstance(module, nn.Conv2d), tuple(output.shape)))

    with ExitStack() as stack:
        for module in names:
            stack.enter_context(module.register_forward_hook(on_output))
        if layers is None:
            stack.enter_context(_Enlargements(size, events))
        parameter = next(model.parameters())
        generator = torch.Generator().manual_seed(0)
        model(torch.rand((1, 3, *size), generator=generator).to(parameter.device, parameter.dtype))
    return events


class _Enlargements(TorchFunctionMode):
    """Records every function call, also inside modules, whose result is a map 2, 3, ... times the LR size."""

    def __init__(self, size: tuple[int, int], events: list[_Event]) -> None:
        super().__init__()
        self.size, self.events = size, events

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        source = args[0] if args else (kwargs or {}).get("input")
        if self._enlarged(out) and isinstance(source, Tensor) and not self._enlarged(source):
            image = source.ndim == 4 and source.shape[1] == 3  # interpolated for a global skip connection
            if not image:
                self.events.append(_Event("", False, tuple(out.shape), out.numel() == source.numel()))
        return out

    def _enlarged(self, x: object) -> bool:
        height, width = self.size
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[0] != 1 or x.shape[2] % height:
            return False
        factor = x.shape[2] // height
        return factor >= 2 and x.shape[3] == factor * width
