from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from idc_ray.config.train import Schedule, TrainConfig
from idc_ray.errors import IdcError
from idc_ray.models import EDSR
from idc_ray.training.loop import NonFiniteLoss, Trainer, learning_rate, pixel_loss
from tests.training.conftest import toy_config, toy_patches


def toy_trainer(config: TrainConfig, model: nn.Module | None = None) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(model or EDSR(2, channels=8, blocks=1), config)


def run(trainer: Trainer, steps: int, seed: int = 0) -> list[float]:
    """Losses, one for each look at the device."""
    feed = toy_patches(trainer.config, seed)
    found = [trainer.advance(*feed.batch(trainer.step, 0, 1)) for _ in range(steps)]
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


def test_a_restored_trainer_goes_on_bit_by_bit() -> None:
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


def test_the_state_of_another_network_is_refused() -> None:
    trainer = toy_trainer(toy_config())
    run(trainer, 1)
    other = toy_trainer(toy_config(), EDSR(2, channels=6, blocks=1))
    with pytest.raises(IdcError, match="not of this network"):
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
    """Catches a look that comes late and blames the step it came at."""
    trainer = toy_trainer(toy_config(iterations=9), Poisoned(where))
    with pytest.raises(NonFiniteLoss, match="at step 3") as caught:
        run(trainer, 9)
    assert caught.value.step == 2
