from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from idc_ray.models import EDSR
from idc_ray.models.interpolation_start import interpolation_start


@pytest.mark.parametrize("scale", [2, 3])
def test_a_fresh_network_is_bilinear_interpolation(scale: int) -> None:
    """Catches swapped sub-pixels and a residual branch that still adds noise; the border sees zero padding."""
    model = EDSR(scale, channels=8, blocks=2)
    interpolation_start(model)
    x = torch.rand(1, 3, 12, 10)
    expected = functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
    inner = slice(2 * scale, -2 * scale)
    assert torch.allclose(model(x)[..., inner, inner], expected[..., inner, inner], atol=1e-5)


def test_at_x4_it_interpolates_twice() -> None:
    model = EDSR(4, channels=8, blocks=1)
    interpolation_start(model)
    x = torch.rand(1, 3, 10, 12)
    once = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    expected = functional.interpolate(once, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(model(x)[..., 12:-12, 12:-12], expected[..., 12:-12, 12:-12], atol=1e-5)


def test_every_weight_still_learns() -> None:
    """Catches a start from which a layer never moves: only the zeroed branches may wait one step."""
    model = EDSR(2, channels=8, blocks=1)
    interpolation_start(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    before = {name: value.clone() for name, value in model.named_parameters()}
    for _ in range(4):
        x, y = torch.rand((2, 3, 8, 8), generator=generator), torch.rand((2, 3, 16, 16), generator=generator)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    still = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    assert still == []
