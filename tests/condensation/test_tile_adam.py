from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idc_ray.condensation.tile_adam import TileAdam

BETAS = (0.9, 0.999)


def tiles(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_a_step_is_the_rate_on_average_and_goes_along_the_gradient() -> None:
    """Catches a rate that depends on the loss's scale, and Adam's own normalisation, pixel by pixel."""
    image = tiles()
    before, direction = image.detach().clone(), torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    gradient = direction * torch.tensor([1e-6, 1.0, 1e6]).view(3, 1, 1, 1)
    image.grad = gradient
    TileAdam([image], BETAS).step(0.01)
    moved = image.detach() - before
    assert torch.allclose(moved.square().mean((1, 2, 3)).sqrt(), torch.full((3,), 0.01), rtol=1e-4)
    factor = moved / -gradient
    assert torch.allclose(factor, factor[:, :1, :1, :1].expand_as(factor), rtol=1e-2)


def test_equals_adam_where_all_gradients_of_a_tile_are_equally_large() -> None:
    """Catches a wrong decay or a wrong correction of the first steps: there the two are the same."""
    mine, theirs = tiles(), tiles()
    adam = TileAdam([mine], BETAS)
    reference = torch.optim.Adam([theirs], lr=1.0, betas=BETAS, eps=0)
    random = torch.Generator().manual_seed(1)
    for step in range(20):
        size = torch.rand(3, 1, 1, 1, generator=random) + 0.1
        gradient = size * torch.randint(0, 2, mine.shape, generator=random).mul(2).sub(1)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        rate = 0.01 / (step + 1)
        adam.step(rate)
        reference.param_groups[0]["lr"] = rate
        reference.step()
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_images_do_not_touch_each_other() -> None:
    """Bit for bit: an image next to others must end as it would alone."""
    alone, first, second = tiles(), tiles(), tiles(2, seed=5)
    pair, single = TileAdam([first, second], BETAS), TileAdam([alone], BETAS)
    for seed in range(3):
        gradient = torch.randn(alone.shape, generator=torch.Generator().manual_seed(seed))
        alone.grad, first.grad, second.grad = gradient.clone(), gradient.clone(), torch.full_like(second, 1e9)
        pair.step(0.01)
        single.step(0.01)
    assert torch.equal(alone, first)


def test_no_gradient_no_movement() -> None:
    """Catches a division by zero: an image that is black all over has no gradient."""
    image = tiles()
    before = image.detach().clone()
    image.grad = torch.zeros_like(image)
    TileAdam([image], BETAS).step(0.01)
    assert torch.equal(image, before)


def test_gradients_are_forgotten() -> None:
    """Catches steps along the sum of all gradients so far."""
    image = tiles()
    adam = TileAdam([image], BETAS)
    image.sum().backward()
    adam.zero_grad()
    assert image.grad is None
    with pytest.raises(AssertionError):
        adam.step(0.01)
