"""The teacher: a frozen network that computes features, before its upsampler, and labels."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from idc_ray.errors import BadRequest
from idc_ray.models.feature_layer import resolve_feature_layer
from idc_ray.models.upscaler import Upscaler


class _FeaturesReady(Exception):
    """Ends the network's forward pass once the features are computed; not an error."""


class _Pass(threading.local):
    """State of the feature hook in the current thread; the hook does nothing unless ``wanted`` is set."""

    def __init__(self) -> None:
        self.wanted = False
        self.stop = False
        self.features: Tensor | None = None


class Teacher(Upscaler):
    """An :class:`Upscaler` that also returns features.

    The hook on the feature layer is permanent but does nothing unless the same thread requested features, so
    failed passes leave no state and threads are independent.

    Args:
        model: see :class:`Upscaler`.
        feature_layer: a module's name, or ``auto`` (see :func:`resolve_feature_layer`).
        arguments: other arguments of :class:`Upscaler`.

    Attributes:
        feature_layer: the feature layer's name.
        channels: number of channels of its output.

    Raises:
        BadRequest: as :class:`Upscaler` and :func:`resolve_feature_layer`.
    """

    def __init__(self, model: nn.Module, *, feature_layer: str = "auto", **arguments: Any) -> None:
        super().__init__(model, **arguments)
        self.feature_layer, self.channels = resolve_feature_layer(self.model, feature_layer, self._fitting)
        self._pass = _Pass()
        self.model.get_submodule(self.feature_layer).register_forward_hook(self._on_features)

    def features(self, lr: Tensor) -> Tensor:
        """Compute the feature layer's output, differentiable; the layers after it are skipped.

        Args:
            lr: float (B, 3, h, w), RGB in [0, 1], on the network's device.

        Returns:
            (B, channels, h, w).

        Raises:
            BadRequest: the network pads images of this size, so its feature map is larger than the image.
        """
        features, _ = self._run(lr, stop=True)
        return features

    def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`features` and :meth:`upscale` of the same images in one pass."""
        height, width = lr.shape[-2:]
        features, out = self._run(lr, stop=False)
        assert out is not None  # the pass was not stopped
        return features, out[..., : height * self.scale, : width * self.scale].clamp(0, 1)

    @torch.no_grad()
    def check_tile(self, tile: int) -> None:
        """As :meth:`Upscaler.check_tile`; also computes the features of one tile."""
        super().check_tile(tile)
        self.features(torch.zeros(1, 3, tile, tile, device=self.device))

    def _run(self, lr: Tensor, stop: bool) -> tuple[Tensor, Tensor | None]:
        state, out = self._pass, None
        state.wanted, state.stop = True, stop
        fitted = self._fit(lr)
        try:
            out = self.model(fitted)
        except _FeaturesReady:
            pass
        finally:
            features, state.features, state.wanted = state.features, None, False
        if features is None or features.shape[-2:] != fitted.shape[-2:]:
            found = "nothing" if features is None else tuple(features.shape)
            raise BadRequest(
                f"feature layer {self.feature_layer!r} of {self.name} gives {found} for images of shape "
                f"{tuple(fitted.shape)}; expected a map at LR resolution: the network pads its input, so "
                "use a --tile-size that is a multiple of its window, such as 48 or 64"
            )
        return features[..., : lr.shape[-2], : lr.shape[-1]], out

    def _on_features(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        state = self._pass
        if not state.wanted:
            return
        state.wanted = False  # only the first call of a layer that runs several times counts
        # Later layers may overwrite the output, as an in-place ReLU does.
        state.features = output if state.stop else output.clone()
        if state.stop:
            raise _FeaturesReady
