"""The training loop: plain torch, in one process or in one of several workers; without Ray or MLflow."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idc_ray.condensation.seeding import integer
from idc_ray.config.train import Schedule, TrainConfig, TrainOptimizer
from idc_ray.errors import IdcError
from idc_ray.training.low_precision import LowPrecisionCopy, Precision, choose_precision
from idc_ray.training.pairs import StepRows

log = logging.getLogger(__name__)

#: Charbonnier's epsilon squared, as in LapSRN.
CHARBONNIER = 1e-6

#: Number of steps between reads of the losses, by device; each read synchronises host and device.
CHECK_EVERY = {"cpu": 20, "cuda": 100}

#: Calls of a function before it is captured.
WARM_UP_STEPS = 3

#: Largest share of the steps that warm-up takes, for short trainings.
MOST_WARMUP = 0.1


class NonFiniteLoss(IdcError):
    """The loss or its gradient is NaN or infinite. ``step`` is the first such step, from 0."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient is not finite at step {step + 1}")
        self.step = step


def learning_rate(schedule: Schedule, peak: float, step: int, iterations: int) -> float:
    """Learning rate of step ``step`` (from 0) of ``iterations``."""
    warmup = min(schedule.warmup, int(MOST_WARMUP * iterations))
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, iterations - warmup)))
    if schedule.kind == "multistep":
        return peak * schedule.gamma ** sum(step >= share * iterations for share in schedule.milestones)
    return peak


def pixel_loss(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Mean over all elements of |error| for ``l1``, of sqrt(error^2 + 1e-6) for ``charbonnier``."""
    error = output - target
    return error.abs().mean() if kind == "l1" else (error.square() + CHARBONNIER).sqrt().mean()


def make_optimizer(settings: TrainOptimizer, parameters: list[nn.Parameter], rate: Tensor | None) -> torch.optim.Adam:
    """Adam or AdamW with the configured settings.

    Args:
        settings: the configuration.
        parameters: the parameters to optimise.
        rate: tensor with the learning rate, as CUDA graphs need; None: the rate is set before each step.
    """
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    captured = rate is not None
    optimizer = kind(
        parameters,
        lr=settings.learning_rate if rate is None else rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        foreach=not captured,
        fused=captured,
        capturable=captured,
    )
    for parameter in parameters:  # as the first step would do, so that a state can be restored before it
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device if captured else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


class _Graph:
    """A function of device tensors as a CUDA graph.

    Args:
        function: the function to capture; called a few times first as a warm-up.
        inputs: its arguments; arguments of :meth:`replay` have the same shapes.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self._inputs = [value.clone() for value in inputs]
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                function(*self._inputs)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = function(*self._inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        for static, value in zip(self._inputs, inputs, strict=True):
            static.copy_(value)
        self._graph.replay()
        return self._output.clone()


@dataclass
class Progress:
    """Progress of a training: number of steps, and the mean loss since the last report."""

    step: int
    loss: float


class Trainer:
    """A network in training: weights, their moving average, Adam's state, and the number of steps.

    Random numbers in a step (a network may draw some) are seeded from (seed, step, rank), so no state of a random
    generator has to be saved.

    On a GPU a step, :meth:`_step`, is captured as a CUDA graph and replayed, which takes the host microseconds instead
    of milliseconds.

    Args:
        model: maps (b, 3, p, p) in [0, 1] to (b, 3, scale p, scale p); on its device.
        config: the training's settings.
        rank: number of this worker.
        wrapped: the wrapped model to call, such as one that averages gradients over workers; None: the model itself.
        patches: makes LR and HR patches from the arguments of :meth:`advance`, see
            :meth:`idc_ray.training.pairs.Feed.patches`. None: the arguments are the patches.
        precision: of convolutions and linear layers; None: as configured for this device.
        capturable: whether numbers that change from step to step are tensors on the device, as CUDA graphs need; None:
            on GPUs, unless the settings or ``wrapped`` rule out graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        rank: int = 0,
        wrapped: nn.Module | None = None,
        patches: Callable[..., tuple[Tensor, Tensor]] | None = None,
        precision: Precision | None = None,
        capturable: bool | None = None,
    ) -> None:
        self.model, self.config, self.rank = model.train(), config, rank
        self.device = next(model.parameters()).device
        self.precision = precision or choose_precision(config.precision, self.device, config.model)
        self.step = 0
        single = wrapped is None or wrapped is model
        self._low = LowPrecisionCopy(model) if single and self.precision == "bfloat16" else None
        self._called = self._low.module if self._low else wrapped or model
        if config.execution == "compiled":
            self._called = torch.compile(self._called, dynamic=False)  # type: ignore[assignment]
        self._patches = patches or (lambda *given: given)
        if capturable is None:
            capturable = single and self.device.type == "cuda" and config.execution != "eager"
        self._captures = capturable and self.device.type == "cuda"
        self._graph: _Graph | None = None
        self._scalars = StepRows(self._scalars_of, self.device) if capturable else None
        self._current = torch.zeros(2, device=self.device)  # learning rate, and weight of the step in the average
        self._parameters = list(model.parameters())
        self._optimizer = make_optimizer(config.optimizer, self._parameters, self._current[0] if capturable else None)
        values = model.state_dict()  # not copies: they change in place
        self.average = {name: value.detach().clone() for name, value in values.items()}
        floats = [name for name, value in values.items() if value.is_floating_point()]
        self._averaged = [self.average[name] for name in floats], [values[name] for name in floats]
        # integers, such as index tables, are copied, not averaged
        self._copied = [(self.average[name], values[name]) for name in values.keys() - set(floats)]
        self._outcomes: list[Tensor] = []

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        return self._rate(max(0, self.step - 1))

    def advance(self, *inputs: Tensor) -> Progress | None:
        """Train one step on the patches of ``inputs``; returns the progress every few steps, otherwise None.

        Raises:
            NonFiniteLoss: as :meth:`read_losses`; the weights are then unusable.
        """
        if self._scalars is not None:
            self._current.copy_(self._scalars[self.step])
        else:
            self._optimizer.param_groups[0]["lr"] = self._rate(self.step)
        if self._captures and self._graph is None:
            self._graph = self._captured(inputs)
        generator = torch.cuda.default_generators[self.device.index] if self.device.type == "cuda" else None
        (generator or torch.default_generator).manual_seed(integer(self.config.seed, "step", self.step, self.rank))
        outcome = self._graph.replay(inputs) if self._graph else self._step(*inputs)
        self._outcomes.append(outcome)
        self.step += 1
        every = CHECK_EVERY[self.device.type]
        return self.read_losses() if len(self._outcomes) == every or self.step == self.config.iterations else None

    def read_losses(self) -> Progress:
        """Wait for the device and read the losses since the last call.

        Raises:
            NonFiniteLoss: a loss or gradient is not finite. A finite loss can have an infinite gradient, which makes
                weights and average non-finite.
        """
        if not self._outcomes:
            return Progress(self.step, math.nan)
        outcomes = torch.stack(self._outcomes).cpu()
        self._outcomes = []
        wrong = ~outcomes.isfinite().all(1)
        if wrong.any():
            raise NonFiniteLoss(self.step - len(outcomes) + int(wrong.nonzero()[0]))
        return Progress(self.step, float(outcomes[:, 0].double().mean()))

    def state(self) -> dict[str, Tensor]:
        """All tensors needed to continue the training, by name; not copies, they change in place."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self._optimizer.state[parameter].items():
                tensors[f"adam.{key}.{name}"] = value
        return {name: value.detach() for name, value in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore a :meth:`state` saved after ``step`` steps.

        Raises:
            IdcError: it is the state of another network.
        """
        current = self.state()
        wrong = [name for name, value in current.items() if name not in tensors or tensors[name].shape != value.shape]
        if wrong or len(tensors) > len(current):
            named = (wrong or sorted(tensors.keys() - current.keys()))[0]
            raise IdcError(f"the saved state is of another network ({named}); give --overwrite to start over")
        for name, value in current.items():
            value.copy_(tensors[name])
        self.step = step

    def _step(self, *inputs: Tensor) -> Tensor:
        """One step, as operations on the device only; returns loss and gradient norm, (2,)."""
        lr, hr = self._patches(*inputs)
        self._optimizer.zero_grad(set_to_none=True)
        if self._low is not None:
            self._low.read_weights()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = self._called(lr)
        loss = pixel_loss(self.config.loss, output.float(), hr)
        loss.backward()
        if self._low is not None:
            self._low.copy_gradients()
        norm = nn.utils.clip_grad_norm_(self._parameters, self.config.optimizer.clip_norm, foreach=True)
        self._optimizer.step()
        self._update_average()
        return torch.stack([loss.detach(), norm.detach()])

    @torch.no_grad()
    def _update_average(self) -> None:
        averages, values = self._averaged
        if self._scalars is None:
            torch._foreach_lerp_(averages, values, self._share(self.step))
        else:  # _foreach_lerp_ does not accept a tensor as weight
            difference = torch._foreach_sub(values, averages)
            torch._foreach_mul_(difference, self._current[1])
            torch._foreach_add_(averages, difference)
        for average, value in self._copied:
            average.copy_(value)

    def _rate(self, step: int) -> float:
        peak = self.config.optimizer.learning_rate
        return learning_rate(self.config.schedule, peak, step, self.config.iterations)

    def _share(self, step: int) -> float:
        """Weight of a step in the moving average."""
        # In the first steps a plain mean, so that the random initial weights have no influence.
        return 1 - min(self.config.ema, step / (step + 1))

    def _scalars_of(self, steps: range) -> Tensor:
        return torch.tensor([[self._rate(step), self._share(step)] for step in steps])

    def _captured(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """The step as a CUDA graph; None if it cannot be captured, which is not tried again."""
        tensors = list(self.state().values())
        before = [value.clone() for value in tensors]
        try:
            graph = _Graph(self._step, inputs)
        except RuntimeError as error:
            log.warning(
                "no CUDA graph, so training is slower (--execution eager does not try one): %s",
                str(error).splitlines()[0],
            )
            self._captures, graph = False, None
        for value, old in zip(tensors, before, strict=True):
            value.copy_(old)
        return graph
