from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idc_ray.condensation.seeding import integer
from idc_ray.config.train import Schedule, TrainConfig
from idc_ray.errors import IdcError
from idc_ray.models import EDSR
from idc_ray.training import loop
from idc_ray.training.loop import NonFiniteLoss, Trainer, learning_rate, pixel_loss
from idc_ray.training.low_precision import choose_precision
from tests.training.conftest import toy_config, toy_patches


def toy_trainer(config: TrainConfig, model: nn.Module | None = None) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(model or EDSR(2, channels=8, blocks=1), config)


def run(trainer: Trainer, steps: int, seed: int = 0) -> list[float]:
    """Losses, one for each read from the device."""
    feed = toy_patches(trainer.config, seed)
    trainer._patches = feed.patches
    found = [trainer.advance(*feed.inputs(trainer.step)) for _ in range(steps)]
    return [progress.loss for progress in found if progress is not None]


def test_the_loss_falls() -> None:
    losses = run(toy_trainer(toy_config(iterations=120)), 120)
    assert len(losses) == 6
    assert losses[-1] < 0.35 * losses[0]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    """Bit for bit; and another seed gives others."""
    config = toy_config(iterations=5, optimizer__name=name)
    trainers = [toy_trainer(config) for _ in range(3)]
    for trainer, seed in zip(trainers, (0, 0, 1), strict=True):
        run(trainer, 5, seed)
    one, two, other = (trainer.average for trainer in trainers)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["conv_last.weight"], other["conv_last.weight"])


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
def test_the_average_is_that_of_the_weights_after_each_step(decay: float) -> None:
    """Catches a random start that lingers, and an average that lags one step; 0 gives the raw weights."""
    trainer = toy_trainer(toy_config(iterations=6, ema=decay))
    history = []
    for _ in range(6):
        run(trainer, 1)
        history.append(trainer.model.conv_last.weight.detach().clone())
    expected = history[0].clone()
    for step, weights in enumerate(history):
        keep = min(decay, step / (step + 1))
        expected = keep * expected + (1 - keep) * weights
    assert torch.allclose(trainer.average["conv_last.weight"], expected, atol=1e-7)
    assert torch.equal(trainer.average["conv_last.weight"], trainer.model.conv_last.weight) == (decay == 0)


class Restless(nn.Module):
    """Draws numbers in training, and counts its calls in an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(3), EDSR(2, channels=4, blocks=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x) + 0.1 * torch.randn_like(x))


def test_a_restored_trainer_continues_bit_by_bit() -> None:
    """Catches a lost moment of Adam, average, counter or random number: weights would differ in the last bits."""
    config = toy_config(iterations=20, schedule__warmup=2)
    straight = toy_trainer(config, Restless())
    broken = toy_trainer(config, Restless())
    broken.model.load_state_dict(straight.model.state_dict())
    run(straight, 20)
    run(broken, 7)
    saved = {name: value.clone() for name, value in broken.state().items()}
    torch.manual_seed(99)
    again = toy_trainer(config, Restless())
    again.restore(saved, 7)
    run(again, 13)
    for name, value in straight.state().items():
        assert torch.equal(value, again.state()[name]), name
    assert again.average["norm.num_batches_tracked"].item() == 20


def plain_loop(config: TrainConfig, model: nn.Module, steps: int) -> dict[str, Tensor]:
    """The average of the weights after a loop that is written down as plainly as can be."""
    settings = config.optimizer
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=settings.betas, foreach=True)
    average = {name: value.clone() for name, value in model.state_dict().items()}
    feed = toy_patches(config)
    for step in range(steps):
        torch.manual_seed(integer(config.seed, "step", step, 0))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, settings.learning_rate, step, config.iterations)
        lr, hr = feed.batch(step)
        optimizer.zero_grad(set_to_none=True)
        (model(lr).float() - hr).abs().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm, foreach=True)
        optimizer.step()
        keep = min(config.ema, step / (step + 1))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - keep)
            else:
                average[name].copy_(value)
    return average


def test_the_trainer_is_a_plain_loop_bit_by_bit() -> None:
    """Catches a step that was made faster and is another one."""
    config = toy_config(iterations=30, precision="float32")
    trainer, model = toy_trainer(config, Restless()), Restless()
    model.load_state_dict(trainer.model.state_dict())
    expected = plain_loop(config, model, 30)
    run(trainer, 30)
    assert all(torch.equal(value, expected[name]) for name, value in trainer.average.items())


class PlainCall:
    """Stands in for a CUDA graph where there is no GPU: the same warm-up and fixed inputs, and a call for a replay."""

    def __init__(self, function: Any, inputs: Any) -> None:
        self.function, self.inputs = function, [value.clone() for value in inputs]
        for _ in range(loop.WARM_UP_STEPS):
            function(*self.inputs)

    def replay(self, inputs: Any) -> Tensor:
        for static, value in zip(self.inputs, inputs, strict=True):
            static.copy_(value)
        return self.function(*self.inputs)


def captured_trainer(config: TrainConfig, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    monkeypatch.setattr(loop, "_Graph", PlainCall)
    trainer = Trainer(model, config, capturable=True)
    trainer._captures = True
    return trainer


def test_the_captured_step_is_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a warm-up that leaves traces, a rate or an average that stays as it was when the step was captured."""
    config = toy_config(iterations=30, precision="float32", schedule__warmup=3)
    eager = toy_trainer(config)
    model = EDSR(2, channels=8, blocks=1)
    model.load_state_dict(eager.model.state_dict())
    captured = captured_trainer(config, model, monkeypatch)
    run(eager, 30)
    run(captured, 30)
    for name, value in eager.state().items():  # fused Adam rounds otherwise than that of several calls
        assert torch.allclose(value, captured.state()[name], rtol=1e-4, atol=1e-6), name
    assert captured.average["conv_last.weight"].sub(model.conv_last.weight).abs().max() > 1e-5


def test_a_captured_training_resumes_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(iterations=20, schedule__warmup=2)
    first = Restless().state_dict()

    def trainer() -> Trainer:
        model = Restless()
        model.load_state_dict(first)
        return captured_trainer(config, model, monkeypatch)

    straight, broken, again = trainer(), trainer(), trainer()
    run(straight, 20)
    run(broken, 7)
    again.restore({name: value.clone() for name, value in broken.state().items()}, 7)
    run(again, 13)
    for name, value in straight.state().items():
        assert torch.equal(value, again.state()[name]), name


def test_a_step_that_cannot_be_captured_runs_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(iterations=4)
    trainer = captured_trainer(config, EDSR(2, channels=8, blocks=1), monkeypatch)
    before = {name: value.clone() for name, value in trainer.state().items()}

    def fail(function: Any, inputs: Any) -> Any:
        function(*inputs)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(loop, "_Graph", fail)
    feed = toy_patches(config)
    trainer._patches = feed.patches
    assert trainer._captured(feed.inputs(0)) is None
    assert all(torch.equal(value, before[name]) for name, value in trainer.state().items())
    run(trainer, 4)
    assert trainer.step == 4
    assert caplog.text.count("no CUDA graph") == 1


def test_bfloat16_learns_what_float32_does() -> None:
    """Float32 weights take steps that bfloat16 ones would round away."""
    losses, weights = {}, {}
    for precision in ("float32", "bfloat16"):
        trainer = toy_trainer(toy_config(iterations=120, precision=precision))
        losses[precision] = run(trainer, 120)[-1]
        weights[precision] = trainer.model.conv_first.weight.detach()
        assert all(value.dtype == torch.float32 for name, value in trainer.state().items())
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.25)
    assert not torch.equal(weights["bfloat16"].bfloat16().float(), weights["bfloat16"])


def test_the_state_of_another_network_is_refused() -> None:
    trainer = toy_trainer(toy_config())
    run(trainer, 1)
    other = toy_trainer(toy_config(), EDSR(2, channels=6, blocks=1))
    with pytest.raises(IdcError, match="of another network"):
        other.restore(trainer.state(), 1)


def test_cosine_warms_up_and_falls_to_nothing() -> None:
    rates = [learning_rate(Schedule(warmup=10), 1.0, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001


def test_multistep_halves_at_its_milestones() -> None:
    """SwinIR's: 500,000 steps, halved at 250, 400, 450 and 475 thousand."""
    schedule = Schedule(kind="multistep", warmup=0)
    rates = [learning_rate(schedule, 1.0, step, 500) for step in (0, 249, 250, 399, 400, 450, 475, 499)]
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    assert learning_rate(Schedule(kind="constant", warmup=0), 1.0, 400, 500) == 1.0


def test_warmup_never_eats_a_short_training() -> None:
    rates = [learning_rate(Schedule(warmup=200), 1.0, step, 30) for step in range(30)]
    assert max(rates) == 1.0
    assert rates.index(1.0) <= 3


def test_charbonnier_is_smooth_where_l1_is_not() -> None:
    output = torch.zeros(4, requires_grad=True)
    pixel_loss("charbonnier", output, torch.tensor([0.0, 3.0, -4.0, 0.0])).backward()
    assert torch.allclose(output.grad, torch.tensor([0.0, -0.25, 0.25, 0.0]), atol=1e-6)
    assert float(pixel_loss("l1", torch.zeros(2), torch.tensor([3.0, -4.0]))) == 3.5


class Poisoned(nn.Module):
    """Its loss (``where="loss"``) or only its gradient is not finite, from the third step on."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0
        self.net = EDSR(2, channels=4, blocks=1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.net(x)
        if self.calls < 3:
            return out
        # The root of zero: no change to the value, an infinite slope.
        return out + (math.nan if self.where == "loss" else (out - out.detach()).abs().sqrt())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_the_first_step_that_is_not_finite_is_named(where: str) -> None:
    """Catches a late check that names the step of the check."""
    trainer = toy_trainer(toy_config(iterations=9), Poisoned(where))
    with pytest.raises(NonFiniteLoss, match="at step 3") as caught:
        run(trainer, 9)
    assert caught.value.step == 2


def test_auto_takes_bfloat16_only_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_precision("auto", cpu, "edsr_baseline") == expected
        assert choose_precision("auto", cpu, "mambairv2_light") == "float32"
    assert choose_precision("bfloat16", cpu, "mambairv2_light") == "bfloat16"
