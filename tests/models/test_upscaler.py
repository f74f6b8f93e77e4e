from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from idc_ray.errors import BadRequest
from idc_ray.models import EDSR, Upscaler
from idc_ray.models.upscaler import reflect_pad


class Windowed(nn.Module):
    """Refuses sides that are no multiple of 8, as a transformer without padding does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] % 8 == x.shape[3] % 8 == 0
        assert min(x.shape[2:]) >= 16
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) * self.weight


def upscaler(model: nn.Module, **arguments: int) -> Upscaler:
    return Upscaler(model, **{"scale": 2, **arguments}, name="tiny", sha256="0")


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (3, 2, 1, 4), (5, 0, 0, 6)])
def test_reflect_pad_is_torchs_where_that_is_defined(pads: tuple[int, int, int, int]) -> None:
    x = torch.rand(2, 3, 6, 7)
    top, bottom, left, right = pads
    assert torch.equal(reflect_pad(x, *pads), functional.pad(x, (left, right, top, bottom), mode="reflect"))


def test_reflect_pad_goes_back_and_forth_over_small_images() -> None:
    x = torch.tensor([[0.0, 1.0, 2.0]]).view(1, 1, 1, 3)
    padded = reflect_pad(x, 1, 2, 5, 4)
    assert padded.shape == (1, 1, 4, 12)
    assert padded[0, 0, 0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]


def test_the_network_is_frozen_and_gradients_reach_the_input(edsr: EDSR, image: Tensor) -> None:
    edsr.train()
    network = upscaler(edsr)
    image.requires_grad_()
    network.upscale(image).sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert not edsr.training
    assert all(not p.requires_grad and p.grad is None for p in edsr.parameters())


def test_output_is_clamped_to_an_images_range(edsr: EDSR, image: Tensor) -> None:
    """Catches labels that wrap around when they become 8 bits."""
    nn.init.constant_(edsr.conv_last.bias, 5.0)
    assert upscaler(edsr).upscale(image).unique().tolist() == [1.0]


def test_images_are_fitted_to_what_the_network_takes() -> None:
    """Catches padding that is not cropped, or put on the left."""
    image = torch.rand(1, 3, 9, 21)
    out = upscaler(Windowed(), minimum=16, multiple_of=8).upscale(image)
    assert torch.equal(out, image.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_upscale_image_rounds_to_the_nearest() -> None:
    """Catches truncation, which darkens every label by half a grey level, and swapped axes."""

    class Brighter(Windowed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0.6 / 255

    image = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    out = upscaler(Brighter(), multiple_of=8).upscale_image(image)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, image.repeat(2, 0).repeat(2, 1) + 1)


@pytest.mark.parametrize(("tile", "fits"), [(8, 16), (20, 24), (47, 48)])
def test_check_tile_names_a_size_that_fits(tile: int, fits: int) -> None:
    network = upscaler(Windowed(), minimum=16, multiple_of=8)
    with pytest.raises(BadRequest, match=f"tile size {tile} .*--tile-size {fits}"):
        network.check_tile(tile)
    network.check_tile(fits)


def test_a_network_of_another_scale_is_refused(edsr: EDSR) -> None:
    with pytest.raises(BadRequest, match=r"expected \(1, 3, 96, 100\).*upscales RGB images by 4"):
        upscaler(edsr, scale=4)
