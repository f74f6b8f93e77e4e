"""The teacher: a frozen network that gives features before its upsampler, and labels."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from idc_ray.errors import BadRequest
from idc_ray.models.feature_layer import resolve_feature_layer
from idc_ray.models.upscaler import Upscaler

__all__ = ["Teacher"]


class _FeaturesReady(Exception):
    """Raised out of the network's forward pass once the features exist. No error: the pass has done its work."""


class _Pass(threading.local):
    """What the feature hook does in the current thread's pass: nothing, unless a pass asked for features."""

    def __init__(self) -> None:
        self.wanted = False
        self.stop = False
        self.features: Tensor | None = None


class Teacher(Upscaler):
    """An :class:`Upscaler` whose features can be read.

    The hook on the feature layer stays for the teacher's life but does nothing unless the same thread
    asked for features, so passes that fail leave nothing behind and threads do not see each other's.

    Args:
        model: as for :class:`Upscaler`, and the other arguments with it.
        feature_layer: a module's name, or ``auto`` (see :func:`resolve_feature_layer`).

    Attributes:
        feature_layer: the name of the layer found or given.
        channels: of its output.

    Raises:
        BadRequest: as :class:`Upscaler` and :func:`resolve_feature_layer`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: int,
        name: str,
        sha256: str,
        feature_layer: str = "auto",
        minimum: int = 1,
        multiple_of: int = 1,
    ) -> None:
        super().__init__(model, scale=scale, name=name, sha256=sha256, minimum=minimum, multiple_of=multiple_of)
        self.feature_layer, self.channels = resolve_feature_layer(self.model, feature_layer, self._fitting)
        self._pass = _Pass()
        self.model.get_submodule(self.feature_layer).register_forward_hook(self._on_features)

    def features(self, lr: Tensor) -> Tensor:
        """The feature layer's output; nothing after that layer is computed. Differentiable.

        Args:
            lr: float (B, 3, h, w), RGB in [0, 1], on the network's device.

        Returns:
            (B, channels, h, w).

        Raises:
            BadRequest: the network pads images of this size inside, so its map is larger than the image.
        """
        features, _ = self._run(lr, stop=True)
        return features

    def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`features` and :meth:`upscale` of the same images, in one pass."""
        height, width = lr.shape[-2:]
        features, out = self._run(lr, stop=False)
        assert out is not None  # the pass was not stopped
        return features, out[..., : height * self.scale, : width * self.scale].clamp(0, 1)

    @torch.no_grad()
    def check_tile(self, tile: int) -> None:
        """As :meth:`Upscaler.check_tile`; and the features of one tile are really computed."""
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
                f"{tuple(fitted.shape)}, expected LR resolution; the network pads inside: "
                "use a --tile-size that its window divides, such as 48 or 64"
            )
        return features[..., : lr.shape[-2], : lr.shape[-1]], out

    def _on_features(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        state = self._pass
        if not state.wanted:
            return
        state.wanted = False  # a layer that runs again is not asked again
        # The rest of the network may overwrite its layers' outputs, as an in-place ReLU does.
        state.features = output if state.stop else output.clone()
        if state.stop:
            raise _FeaturesReady
