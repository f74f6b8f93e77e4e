"""The training loop: plain torch, one process or one of several, nothing of Ray or MLflow.

Every trained network of the project comes from here, the bundled teachers included.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idc_ray.condensation.seeding import integer
from idc_ray.config.train import Schedule, TrainConfig, TrainOptimizer
from idc_ray.errors import IdcError

__all__ = ["NonFiniteLoss", "Trainer", "learning_rate", "pixel_loss"]

#: Charbonnier's epsilon squared, as in the SR literature (LapSRN).
CHARBONNIER = 1e-6

#: Steps between two looks at the loss: each makes the host wait for the device.
CHECK_EVERY = 20

#: Warm-up never takes a larger share of a short training.
MOST_WARMUP = 0.1


class NonFiniteLoss(IdcError):
    """The loss or its gradient became NaN or infinite. ``step`` is the first such step, counted from 0."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite at step {step + 1}")
        self.step = step


def learning_rate(schedule: Schedule, peak: float, step: int, iterations: int) -> float:
    """Rate of step ``step`` (from 0) of ``iterations``."""
    warmup = min(schedule.warmup, int(MOST_WARMUP * iterations))
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, iterations - warmup)))
    if schedule.kind == "multistep":
        return peak * schedule.gamma ** sum(step >= share * iterations for share in schedule.milestones)
    return peak


def pixel_loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Mean over all numbers: ``l1`` is |error|, ``charbonnier`` sqrt(error^2 + 1e-6)."""
    error = output - target
    return error.abs().mean() if kind == "l1" else (error.square() + CHARBONNIER).sqrt().mean()


def make_optimizer(settings: TrainOptimizer, parameters: Iterator[nn.Parameter]) -> torch.optim.Adam:
    """Adam or AdamW with the configured settings."""
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(
        parameters, lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay, foreach=True
    )


@dataclass
class Progress:
    """What a look at the device found: steps done, and the mean loss since the last look."""

    step: int
    loss: float


class Trainer:
    """A network on its way: weights, their moving average, Adam's state, the number of steps done.

    Everything random in a step (a network may draw numbers) is seeded from (seed, step, rank), so the state of no
    random generator has to be saved.

    Args:
        model: maps (b, 3, p, p) in [0, 1] to (b, 3, scale p, scale p); on its device.
        config: the training's settings.
        rank: which of the workers this is.
        wrapped: the model as it is called, such as one that averages gradients over workers; None: the model itself.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, rank: int = 0, wrapped: nn.Module | None = None) -> None:
        self.model, self.config, self.rank = model, config, rank
        self.called = model if wrapped is None else wrapped
        self.device = next(model.parameters()).device
        self.step = 0
        self.optimizer = make_optimizer(config.optimizer, model.parameters())
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def advance(self, lr: Tensor, hr: Tensor) -> Progress | None:
        """One step on patches in [0, 1]; every few steps what came of them.

        Raises:
            NonFiniteLoss: one of the last few steps went wrong; the weights here are of no use any more.
        """
        torch.manual_seed(integer(self.config.seed, "step", self.step, self.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.config.schedule, self.config.optimizer.learning_rate, self.step, self.config.iterations
            )
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._precision():
            output = self.called(lr)
        loss = pixel_loss(self.config.loss, output.float(), hr)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm, foreach=True)
        self.optimizer.step()
        self._update_average()
        self._losses.append(loss.detach())
        self._norms.append(norm.detach())
        self.step += 1
        if len(self._losses) == CHECK_EVERY or self.step == self.config.iterations:
            return self.look()
        return None

    def look(self) -> Progress:
        """Wait for the device and see what the steps since the last look gave.

        Raises:
            NonFiniteLoss: a loss or gradient is not finite. A finite loss can have an infinite gradient, and one
                step with it ruins weights and average alike.
        """
        if not self._losses:
            return Progress(self.step, math.nan)
        losses, norms = torch.stack(self._losses).cpu(), torch.stack(self._norms).cpu()
        self._losses, self._norms = [], []
        wrong = ~(losses.isfinite() & norms.isfinite())
        if wrong.any():
            raise NonFiniteLoss(self.step - len(losses) + int(wrong.nonzero()[0]))
        return Progress(self.step, float(losses.double().mean()))

    def state(self) -> dict[str, Tensor]:
        """All tensors that a continued training needs, by name."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return {name: value.detach() for name, value in tensors.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from :meth:`state`, saved after ``step`` steps.

        Raises:
            IdcError: it is the state of another network.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}

        try:
            self.model.load_state_dict(part("model."))
            for name, value in part("average.").items():
                self.average[name].copy_(value)
            moments = {key: part(f"adam.{key}.") for key in ("step", "exp_avg", "exp_avg_sq")}
            for name, parameter in self.model.named_parameters():
                self.optimizer.state[parameter] = {
                    "step": moments["step"][name].clone(),
                    **{
                        key: torch.empty_like(parameter).copy_(moments[key][name])  # in the parameter's memory format
                        for key in ("exp_avg", "exp_avg_sq")
                    },
                }
        except (KeyError, RuntimeError) as error:
            raise IdcError(
                f"the saved state is not of this network ({error}); give --overwrite to start afresh"
            ) from error
        self.step = step

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        wanted = self.config.precision
        if wanted == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            wanted = "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if wanted == "bfloat16" else contextlib.nullcontext()

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the running mean of the steps so far: the random start must not linger.
        keep = min(self.config.ema, self.step / (self.step + 1))
        current = self.model.state_dict()
        floats = [name for name, value in current.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floats], [current[n] for n in floats], 1 - keep)
        for name in current.keys() - set(floats):
            self.average[name].copy_(current[name])  # counters and index tables have no mean
