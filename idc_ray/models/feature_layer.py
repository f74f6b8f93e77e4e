"""Which layer of a teacher gives its features: the last map at LR resolution before the upsampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idc_ray.errors import BadRequest
from idc_ray.models.registry import nearest

__all__ = ["resolve_feature_layer"]

#: Names that architectures give the convolution that ends their trunk.
KNOWN_LAYERS = (
    "conv_after_body",  # EDSR, SwinIR, Swin2SR, HAT, DAT, RGT, ATD, DRCT, GRL, CRAFT
    "LR_conv",  # DCTLSA, IMDN, RFDN
    "conv_body",  # RRDBNet (ESRGAN), MM-RealSR
    "trunk_conv",  # RRDBNet in its first naming
)

#: Not square, so that no attention matrix passes for a map. Windowed networks pad inside to multiples
#: of their window: the first suits windows of 2, 4, 8, 16 and 32, the second those of 7 and 14.
_PROBES = ((32, 64), (28, 42))


@dataclass(frozen=True)
class _Event:
    """One tensor that came into being: a module's output, or (``module`` empty) a function that enlarged a map."""

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
        layer: a module's name, or ``auto``: a known name, else by structure: the last output at LR
            resolution that is as wide as the first convolution's and comes before the first enlargement.
            Where a pixel shuffle enlarges, what the convolution before it computes is never taken.
        fitting: rounds a side up to one that the network takes.

    Raises:
        BadRequest: no such module (with the nearest names), its output is no map at LR resolution (with the
            shape), or nothing suitable is found.
    """
    if layer != "auto":
        return layer, _named(model, layer, fitting)
    top_level = dict(model.named_children())
    for name in KNOWN_LAYERS:
        if name in top_level:
            try:
                return name, _named(model, name, fitting)
            except BadRequest:
                continue  # the same name for another thing: tokens instead of a map, say
    return _by_structure(model, fitting)


def _named(model: nn.Module, layer: str, fitting: Callable[[int], int]) -> int:
    """Channels of a named layer's output, which must be a map at LR resolution."""
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        raise BadRequest(f"the network has no layer {layer!r}; {nearest(layer, names)}")
    shape: object = "nothing: it is not used"
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
            # The last convolution before a pixel shuffle made its input: 4 or 16 values a pixel, not features.
            end = next((i for i in reversed(range(end)) if events[i].is_conv), 0)
        maps = [event for event in events[:end] if _is_lr_map(event.shape, size)]
        # Wider than the image: EDSR's original code subtracts the mean colour with a convolution.
        width = next((event.shape[1] for event in maps if event.is_conv and event.shape[1] > 3), None)
        calls = [event.module for event in events]
        # A module that runs several times (a shared activation) does not name one place in the network.
        found = [event for event in maps if event.shape[1] == width and calls.count(event.module) == 1]
        if found:
            return found[-1].module, found[-1].shape[1]
    raise BadRequest(
        "no feature layer was found in the network: no module gives a map at LR resolution, as wide as the first "
        "convolution's, before the upsampler (or the network pads its input inside); "
        "name one with --rlff.feature-layer, such as body.3"
    )


def _probe_sizes(fitting: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    for height, width in _PROBES:
        height = fitting(height)
        yield height, max(fitting(width), fitting(height + 1))


def _is_lr_map(shape: Sequence[int], size: tuple[int, int]) -> bool:
    return len(shape) == 4 and shape[0] == 1 and tuple(shape[2:]) == size


@torch.no_grad()
def _record(model: nn.Module, size: tuple[int, int], layers: Sequence[str] | None = None) -> list[_Event]:
    """Run a small image; what ``layers`` (None: all modules) and enlarging functions gave, in the order of ending."""
    events: list[_Event] = []
    names = {module: name for name, module in model.named_modules() if name and (layers is None or name in layers)}

    def on_output(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            events.append(_Event(names[module], isinstance(module, nn.Conv2d), tuple(output.shape)))

    with ExitStack() as stack:
        for module in names:
            stack.enter_context(_hook(module, on_output))
        if layers is None:
            stack.enter_context(_Enlargements(size, events))
        parameter = next(model.parameters())
        generator = torch.Generator().manual_seed(0)
        model(torch.rand((1, 3, *size), generator=generator).to(parameter.device, parameter.dtype))
    return events


@contextmanager
def _hook(module: nn.Module, function: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()


class _Enlargements(TorchFunctionMode):
    """Notes every function, also those inside modules, whose result is a map 2, 3, ... times the LR size."""

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
