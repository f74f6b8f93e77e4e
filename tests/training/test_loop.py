from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from idc_ray.models import EDSR
from idc_ray.training.loop import NonFiniteLoss, TrainSettings, train
from idc_ray.training.pairs import PairSampler


def toy_sampler(seed: int = 0) -> PairSampler:
    """Smooth pictures whose HR is their LR, enlarged bilinearly: learnt within a few steps."""
    noise = torch.rand((3, 3, 6, 6), generator=torch.Generator().manual_seed(7))
    lr = (nn.functional.interpolate(noise, size=(24, 24), mode="bicubic").clamp(0, 1) * 255).byte()
    hr = (nn.functional.interpolate(lr.float(), scale_factor=2, mode="bilinear")).round().byte()
    return PairSampler(list(zip(lr, hr, strict=True)), 2, 8, torch.Generator().manual_seed(seed))


def toy_model() -> EDSR:
    torch.manual_seed(0)
    return EDSR(2, channels=8, blocks=1)


def test_the_loss_falls() -> None:
    losses: list[float] = []
    settings = TrainSettings(iterations=80, batch_size=4, learning_rate=5e-3, warmup=5)
    train(toy_model(), toy_sampler(), settings, lambda step, loss, _: losses.append(loss))
    assert len(losses) == 80
    assert sum(losses[-10:]) < 0.35 * sum(losses[:10])


def test_the_same_seed_gives_the_same_weights() -> None:
    """Bit for bit: a bundled teacher can be made again; and another seed gives others."""
    settings = TrainSettings(iterations=5, batch_size=2, warmup=2)
    one, two, other = (train(toy_model(), toy_sampler(seed), settings) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["conv_last.weight"], other["conv_last.weight"])


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
def test_the_average_is_that_of_the_weights_after_each_step(decay: float) -> None:
    """Catches a random start that lingers, and an average that lags one step; 0 gives the raw weights."""
    model, history = toy_model(), []
    settings = TrainSettings(iterations=6, batch_size=2, warmup=2, ema=decay)
    average = train(model, toy_sampler(), settings, lambda *_: history.append(model.conv_last.weight.detach().clone()))
    expected = history[0].clone()
    for step, weights in enumerate(history):
        keep = min(decay, step / (step + 1))
        expected = keep * expected + (1 - keep) * weights
    assert torch.allclose(average["conv_last.weight"], expected, atol=1e-7)
    assert torch.equal(average["conv_last.weight"], model.conv_last.weight) == (decay == 0)


def test_integer_buffers_are_carried_along() -> None:
    """Catches a crash of networks with BatchNorm, whose counter has no moving average."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.net = nn.BatchNorm2d(3), EDSR(2, channels=4, blocks=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(self.norm(x))

    average = train(Normed(), toy_sampler(), TrainSettings(iterations=3, batch_size=2))
    assert average["norm.num_batches_tracked"].item() == 3


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    settings = TrainSettings(iterations=100, learning_rate=1.0, warmup=10)
    rates = [settings.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001


def test_a_run_shorter_than_its_warmup_has_finite_rates() -> None:
    assert all(0 < TrainSettings(iterations=3, warmup=200).rate(step) < 1e-3 for step in range(3))


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
def test_a_non_finite_step_is_not_taken(where: str) -> None:
    """Catches weights ruined by the step that is reported."""
    torch.manual_seed(0)
    model, seen = Poisoned(where), []

    def keep(step: int, loss: float, average: dict[str, Tensor]) -> None:
        seen.append((step, model.net.conv_last.weight.detach().clone()))

    with pytest.raises(NonFiniteLoss, match="at step 3; lower learning_rate"):
        train(model, toy_sampler(), TrainSettings(iterations=9, batch_size=2), keep)
    assert [step for step, _ in seen] == [1, 2]
    assert torch.equal(model.net.conv_last.weight, seen[-1][1])


@pytest.mark.parametrize(
    "wrong", [{"iterations": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"ema": 1.5}, {"clip_norm": 0.0}]
)
def test_settings_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainSettings(**{"iterations": 1, **wrong})  # type: ignore[arg-type]
