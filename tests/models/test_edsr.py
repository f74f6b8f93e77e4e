from __future__ import annotations

import pytest
import torch

from idc_ray.models import EDSR, create_model


@pytest.mark.parametrize(
    ("name", "scale", "expected"),
    [("edsr_baseline", 2, 1_369_859), ("edsr_baseline", 4, 1_517_571), ("edsr_small", 2, 121_987)],
)
def test_parameter_counts_are_the_published_ones(name: str, scale: int, expected: int) -> None:
    """1.37 M and 1.52 M in the paper's code; catches a missing bias or a block too many."""
    assert sum(p.numel() for p in create_model(name, scale).parameters()) == expected


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 5), (16, 9)])
def test_any_size_is_upscaled(scale: int, height: int, width: int) -> None:
    out = EDSR(scale, channels=4, blocks=1)(torch.rand(2, 3, height, width))
    assert out.shape == (2, 3, scale * height, scale * width)


def test_res_scale_weighs_the_residual_only() -> None:
    """Catches a factor on the whole block: with it at 0 a block must be the identity."""
    block = EDSR(2, channels=4, blocks=1, res_scale=0.0).body[0]
    x = torch.rand(1, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_a_res_scale_of_1_multiplies_nothing() -> None:
    """Catches two passes over every block's map, forward and backward, that change no bit."""

    def multiplications(res_scale: float) -> int:
        model = EDSR(2, channels=4, blocks=3, res_scale=res_scale)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(torch.rand(1, 3, 6, 6)).sum().backward()
        return sum(event.name == "aten::mul" for event in profile.events())

    assert multiplications(1.0) == 0
    assert multiplications(0.1) == 2 * 3


def test_the_mean_is_no_weight() -> None:
    """Catches checkpoints that carry the constant, which BasicSR's loader would refuse."""
    assert "mean" not in EDSR(2, channels=4, blocks=1).state_dict()
