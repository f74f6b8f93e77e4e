"""The training loop: plain torch, one process, nothing of Ray or MLflow.

Every trained network of the project comes from here, the bundled teachers included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idc_ray.training.pairs import PairSampler

__all__ = ["NonFiniteLoss", "TrainSettings", "train"]


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became NaN or infinite; the message has the step."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; all defaults are ours.

    Attributes:
        iterations: optimiser steps.
        batch_size: patches per step.
        learning_rate: Adam's peak rate, reached after ``warmup`` steps, then a half cosine down to 0.
        warmup: steps of linear warm-up.
        ema: decay of the exponential moving average of the weights that is returned; 0 turns it off.
        clip_norm: largest L2 norm of the gradient; ``inf`` turns clipping off.
    """

    iterations: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.batch_size < 1 or self.warmup < 0:
            raise ValueError(f"{self}: expected iterations and warmup of at least 0, batch_size of at least 1")
        if not (self.learning_rate > 0 and 0 <= self.ema <= 1 and self.clip_norm > 0):
            raise ValueError(f"{self}: expected learning_rate and clip_norm above 0, ema in [0, 1]")

    def rate(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0)."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.iterations - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    model: nn.Module,
    sampler: PairSampler,
    settings: TrainSettings,
    on_step: Callable[[int, float, dict[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """Train ``model`` in place with L1 loss on random patches.

    Args:
        model: maps (B, 3, p, p) in [0, 1] to (B, 3, scale p, scale p); patches follow it to its device.
        sampler: where patches come from.
        settings: see :class:`TrainSettings`.
        on_step: called after each step with (steps done, loss, averaged weights).

    Returns:
        The averaged weights (the model itself keeps the raw ones).

    Raises:
        NonFiniteLoss: the loss of a step, or its gradient, is not finite; the weights are those before that step.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99))
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    device = next(model.parameters()).device
    model.train()
    for step in range(settings.iterations):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        lr, hr = (patches.to(device, non_blocking=True) for patches in sampler.batch(settings.batch_size))
        optimizer.zero_grad(set_to_none=True)
        loss = (model(lr) - hr).abs().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        value = loss.item()
        # A finite loss can have an infinite gradient, and one step with it ruins weights and average alike.
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise NonFiniteLoss(
                f"loss is {value} and its gradient {float(norm)} at step {step + 1}; "
                f"lower learning_rate ({settings.learning_rate})"
            )
        optimizer.step()
        _update_average(average, model, settings.ema, step)
        if on_step is not None:
            on_step(step + 1, value, average)
    return average


@torch.no_grad()
def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    # Early on the running mean of the steps so far: the random start must not linger.
    keep = min(decay, step / (step + 1))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - keep)
        else:
            average[name].copy_(value)  # counters and index tables have no mean
