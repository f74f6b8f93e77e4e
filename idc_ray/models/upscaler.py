"""A frozen super-resolution network of any project, with one calling convention."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from idc_ray.errors import BadRequest


class Upscaler:
    """A network in evaluation mode with frozen parameters. Gradients still flow to its input.

    Args:
        model: maps RGB (B, 3, h, w) in [0, 1] to (B, 3, scale h, scale w).
        scale: upscaling factor.
        name: for messages and records.
        sha256: of the checkpoint file, hexadecimal.
        minimum: smallest side, in LR pixels, that the network accepts.
        multiple_of: height and width have to be multiples of this.

    Raises:
        BadRequest: the network's output for a small trial image has another shape.

    Example:
        >>> import idc_ray, torch
        >>> model = idc_ray.load_model("bundled", scale=2, device="cpu")
        >>> model
        Upscaler(the bundled teacher, x2, cpu)
        >>> with torch.no_grad():
        ...     model.upscale(torch.zeros(1, 3, 24, 32)).shape
        torch.Size([1, 3, 48, 64])
    """

    def __init__(
        self, model: nn.Module, *, scale: int, name: str, sha256: str, minimum: int = 1, multiple_of: int = 1
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.scale, self.name, self.sha256 = scale, name, sha256
        self.minimum, self.multiple_of = max(1, minimum), multiple_of
        self._try()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, x{self.scale}, {self.device})"

    @property
    def device(self) -> torch.device:
        """Device of the network; its input has to be on the same."""
        return next(self.model.parameters()).device

    def upscale(self, lr: Tensor) -> Tensor:
        """Upscale images of any size; they are reflect-padded to a size that the network accepts, and cropped back.

        Args:
            lr: float (B, 3, h, w), RGB in [0, 1], on the network's device.

        Returns:
            (B, 3, scale h, scale w), clamped to [0, 1].
        """
        height, width = lr.shape[-2:]
        out: Tensor = self.model(self._fit(lr))
        return out[..., : height * self.scale, : width * self.scale].clamp(0, 1)

    @torch.no_grad()
    def upscale_image_float(self, lr: NDArray[np.uint8]) -> NDArray[np.float32]:
        """:meth:`upscale` of a whole 8-bit image: uint8 (h, w, 3) to float32 (scale h, scale w, 3) in [0, 255]."""
        x = torch.tensor(lr, device=self.device).permute(2, 0, 1)[None].float() / 255
        return (self.upscale(x) * 255)[0].permute(1, 2, 0).float().cpu().numpy()

    def upscale_image(self, lr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """:meth:`upscale_image_float`, rounded to uint8."""
        return np.rint(self.upscale_image_float(lr)).astype(np.uint8)

    def check_tile(self, tile: int) -> None:
        """Check that square tiles need no padding, which would change their features.

        Raises:
            BadRequest: ``tile`` (side in LR pixels) is too small or no multiple; the message names one that fits.
        """
        if tile < self.minimum or tile % self.multiple_of:
            fitting = self._fitting(tile)
            raise BadRequest(
                f"tile size {tile} does not suit {self.name}; expected a multiple of {self.multiple_of}, at least "
                f"{self.minimum}: use --tile-size {fitting}"
            )

    def _fitting(self, side: int) -> int:
        side = max(side, self.minimum)
        return -(-side // self.multiple_of) * self.multiple_of

    def _fit(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        down, right = self._fitting(height) - height, self._fitting(width) - width
        return reflect_pad(lr, 0, down, 0, right) if down or right else lr

    @torch.no_grad()
    def _try(self) -> None:
        height, width = self._fitting(24), self._fitting(self._fitting(24) + 1)
        expected = (1, 3, height * self.scale, width * self.scale)
        trial = torch.zeros(1, 3, height, width, device=self.device)
        try:
            out = self.model(trial)
        except Exception as error:  # the weights are anybody's, and some hold indices
            raise BadRequest(
                f"{self.name} fails on an image of shape {tuple(trial.shape)} ({type(error).__name__}: {error}); "
                "the file may be damaged: copy it again, or use another network"
            ) from None
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if found != expected:
            raise BadRequest(
                f"{self.name} maps an image of shape {tuple(trial.shape)} to {found}; expected {expected}: "
                f"use a network that upscales RGB images by {self.scale}"
            )


def reflect_pad(x: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Reflection padding of the last two dimensions, without repeating the border.

    Equals ``torch.nn.functional.pad(..., mode="reflect")``, but the padding may be larger than the image, which is
    then reflected repeatedly.
    """
    rows = _mirrored(x.shape[-2], top, bottom, x.device)
    columns = _mirrored(x.shape[-1], left, right, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def _mirrored(length: int, before: int, after: int, device: torch.device) -> Tensor:
    last = length - 1
    index = torch.arange(-before, length + after, device=device)
    if last == 0:
        return torch.zeros_like(index)
    return last - (index % (2 * last) - last).abs()
