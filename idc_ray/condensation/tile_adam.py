"""Adam for the pixels of tiles, with one step size a tile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Keeps a tile without gradient where it is.
EPSILON = 1e-12


class TileAdam:
    """Adam (Kingma and Ba 2015) whose second moment is the mean over a tile, as Adam-mini's is over a block of weights.

    Adam's own, one for each pixel, moves every pixel as far as every other: where an image is flat, tiny gradients of
    no consequence are blown up to visible noise. Here a pixel moves in proportion to its gradient.

    Args:
        images: tiles (n, 3, p, p) of one image each, that require gradients; changed in place by :meth:`step`.
        betas: decays of the averages of the gradient and of its square, each in [0, 1).
    """

    def __init__(self, images: Sequence[Tensor], betas: tuple[float, float]) -> None:
        self.images, self.betas = list(images), betas
        self._means = [torch.zeros_like(image) for image in self.images]
        self._squares = [image.new_zeros(len(image), 1, 1, 1) for image in self.images]
        self._steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for image in self.images:
            image.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Move against the gradients; the first step is ``learning_rate`` in the quadratic mean over a tile."""
        self._steps += 1
        first, second = self.betas
        for image, mean, square in zip(self.images, self._means, self._squares, strict=True):
            assert image.grad is not None
            mean.lerp_(image.grad, 1 - first)
            square.lerp_(image.grad.square().mean((1, 2, 3), keepdim=True), 1 - second)
            size = (square / (1 - second**self._steps)).sqrt_().add_(EPSILON)
            image.sub_(mean / size, alpha=learning_rate / (1 - first**self._steps))
