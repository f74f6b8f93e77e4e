"""Paired patches drawn at random from images that stay in memory as 8-bit tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["PairSampler"]


class PairSampler:
    """Draws aligned random LR/HR patches with random flips and transposes.

    An image is drawn with probability proportional to its number of LR pixels, so that every place
    in the set is as likely as any other; the same generator state gives the same batch.

    Args:
        pairs: (lr, hr) tensors, uint8, (3, h, w) and (3, scale h, scale w).
        scale: integer factor between the two.
        patch_size: side of the LR patch, in LR pixels; at most the shortest LR side.
        generator: the only source of randomness.

    Raises:
        ValueError: no pairs, sides that do not fit the scale, or an image smaller than the patch.
    """

    def __init__(
        self, pairs: Sequence[tuple[Tensor, Tensor]], scale: int, patch_size: int, generator: torch.Generator
    ) -> None:
        if not pairs:
            raise ValueError("no image pairs to sample from")
        for i, (lr, hr) in enumerate(pairs):
            if lr.dtype != torch.uint8 or hr.dtype != torch.uint8:
                raise ValueError(f"pair {i}: LR is {lr.dtype}, HR {hr.dtype}; expected uint8 (0 to 255)")
            if (3, lr.shape[1] * scale, lr.shape[2] * scale) != tuple(hr.shape) or lr.shape[0] != 3:
                raise ValueError(
                    f"pair {i}: LR is {tuple(lr.shape)}, HR {tuple(hr.shape)}; "
                    f"expected (3, h, w) and (3, {scale} h, {scale} w)"
                )
            if min(lr.shape[1:]) < patch_size:
                raise ValueError(
                    f"pair {i}: LR of {lr.shape[2]} x {lr.shape[1]} is smaller than a patch of {patch_size}"
                )
        self.pairs, self.scale, self.patch_size, self.generator = list(pairs), scale, patch_size, generator
        self._pixels = torch.tensor([float(lr.shape[1] * lr.shape[2]) for lr, _ in pairs])

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """``size`` patches: float32 (size, 3, p, p) and (size, 3, scale p, scale p) in [0, 1]."""
        chosen = torch.multinomial(self._pixels, size, replacement=True, generator=self.generator).tolist()
        patches = [self._patch(*self.pairs[i]) for i in chosen]
        lr = torch.stack([p[0] for p in patches]).float().div_(255)
        hr = torch.stack([p[1] for p in patches]).float().div_(255)
        return lr, hr

    def _patch(self, lr: Tensor, hr: Tensor) -> tuple[Tensor, Tensor]:
        p, s = self.patch_size, self.scale
        top = self._integer(lr.shape[1] - p + 1)
        left = self._integer(lr.shape[2] - p + 1)
        lr = lr[:, top : top + p, left : left + p]
        hr = hr[:, s * top : s * (top + p), s * left : s * (left + p)]
        symmetry = self._integer(8)  # one of the square's eight symmetries
        if symmetry & 1:
            lr, hr = lr.flip(1), hr.flip(1)
        if symmetry & 2:
            lr, hr = lr.flip(2), hr.flip(2)
        if symmetry & 4:
            lr, hr = lr.transpose(1, 2), hr.transpose(1, 2)
        return lr, hr

    def _integer(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.generator))
