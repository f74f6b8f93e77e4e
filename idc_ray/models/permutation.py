"""Differentiable reordering of sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Permutation(NamedTuple):
    """A permutation of L positions, either one for a whole batch (L,) or one for each of its sequences (B, L)."""

    order: Tensor
    """Old position of each new one, integers."""

    inverse: Tensor
    """New position of each old one, integers."""

    @classmethod
    def of(cls, order: Tensor) -> Permutation:
        """Invert ``order`` by a scatter, which is cheaper than sorting it."""
        positions = torch.arange(order.shape[-1], device=order.device).expand_as(order)
        return cls(order, torch.empty_like(order).scatter_(-1, order, positions))

    @property
    def back(self) -> Permutation:
        """The inverse permutation."""
        return Permutation(self.inverse, self.order)


def reorder(x: Tensor, permutation: Permutation) -> Tensor:
    """Permute the positions of x (B, L, C).

    The backward pass gathers with the inverse permutation. That of torch's indexing is a scatter-add, which is
    non-deterministic on CUDA, or sorts all indices with deterministic algorithms.
    """
    return _Reorder.apply(x, permutation.order, permutation.inverse)


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        if order.ndim == 1:
            return x.index_select(1, order)
        return x.gather(1, order.unsqueeze(-1).expand_as(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(grad, inverse, order), None, None
