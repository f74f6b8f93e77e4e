from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from idc_ray.condensation.teacher_features import FeatureReader, GlobalFeatureReader, _reflect
from idc_ray.models.teacher import Teacher


def _tiles(count: int = 3, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padding", [0, 1, 5, 15])
def test_reflection_and_its_gradient_are_torchs(padding: int) -> None:
    """Ours exists for its deterministic gradient; off by one it would repeat the border pixel."""
    ours, theirs = _tiles().requires_grad_(), _tiles().requires_grad_()
    padded, expected = _reflect(ours, padding), F.pad(theirs, (padding,) * 4, mode="reflect")
    assert torch.equal(padded, expected)
    factors = torch.rand(padded.shape, generator=torch.Generator().manual_seed(1))
    (padded * factors).sum().backward()
    (expected * factors).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("padding", [0, 2, 7])
def test_features_are_those_of_the_mirrored_tile_at_the_tile_itself(teacher: Teacher, padding: int) -> None:
    """Cropped at another place than padded, features would not belong to the pixels under them."""
    reader = FeatureReader(teacher, 16, padding, 3)
    whole = teacher.features(F.pad(_tiles(), (padding,) * 4, mode="reflect"))
    assert torch.equal(reader.features(_tiles()), whole[..., padding : padding + 16, padding : padding + 16])


@torch.no_grad()
def test_upscaling_is_the_teacher_of_the_tile_as_it_is(reader: FeatureReader, teacher: Teacher) -> None:
    """Mirrored tiles are no crops of photographs: the teacher's output at their borders is 0.5 to 1 dB worse."""
    assert torch.equal(reader.upscale(_tiles()), teacher.upscale(_tiles()).clamp(0, 1))


@torch.no_grad()
def test_zero_padding_of_the_network_does_not_reach_features() -> None:
    """Without reflection a network that pads with zeros darkens every tile's border, and paints noise there."""
    blur = torch.nn.Conv2d(3, 3, 3, padding=1, bias=False)
    blur.weight.copy_(torch.eye(3)[..., None, None] / 9)

    class Blurring:
        scale, channels = 1, 3

        def features(self, lr: Tensor) -> Tensor:
            return blur(blur(lr))

        upscale = features

        def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
            return self.features(lr), self.upscale(lr)

    flat = torch.full((2, 3, 16, 16), 0.5)
    reader = FeatureReader(Blurring(), 16, 2, 3)
    assert torch.allclose(reader.features(flat), torch.tensor(0.5))
    assert not torch.allclose(replace(reader, padding=0).features(flat), torch.tensor(0.5))


@torch.no_grad()
def test_a_tile_does_not_depend_on_others_in_the_call(reader: FeatureReader) -> None:
    """Bit for bit: Adam would make several grey levels of a last bit."""
    tiles = _tiles(4)
    others = torch.cat([torch.zeros(1, 3, 16, 16), tiles[2:3], torch.ones(2, 3, 16, 16)])
    for function in (reader.features, reader.upscale):
        assert torch.equal(function(tiles)[2], function(others)[1])


def test_labels_are_images() -> None:
    """A network overshoots at edges; outside [0, 1] a label would wrap round when it becomes 8 bits."""

    class Overshooting:
        scale, channels = 1, 3

        def features(self, lr: Tensor) -> Tensor:
            return lr

        def upscale(self, lr: Tensor) -> Tensor:
            return 3 * lr - 1

        def features_and_upscale(self, lr: Tensor) -> tuple[Tensor, Tensor]:
            return self.features(lr), self.upscale(lr)

    out = FeatureReader(Overshooting(), 16, 2, 3).upscale(_tiles())
    assert torch.equal(out, (3 * _tiles() - 1).clamp(0, 1))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_centres_are_where_the_local_features_lie(reader: FeatureReader, kernel: int) -> None:
    """A weight must belong to the middle of the neighbourhood that it weighs."""
    reader = replace(reader, kernel=kernel)
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(2))
    middles = F.unfold(maps.unsqueeze(1), kernel)[:, kernel * kernel // 2]
    assert torch.equal(reader.centres(maps), middles.view(2, reader.positions, reader.positions))


@torch.no_grad()
def test_global_reader_has_one_mean_feature_a_tile(reader: FeatureReader, teacher: Teacher) -> None:
    whole = GlobalFeatureReader(teacher, 16, 2, 1)
    assert torch.allclose(whole.features(_tiles())[..., 0, 0], reader.features(_tiles()).mean((2, 3)), atol=1e-6)
    assert whole.centres(_tiles()).shape == (3, 3, whole.positions, whole.positions) == (3, 3, 1, 1)


@torch.no_grad()
def test_bfloat16_gives_float32_near_the_exact_result(reader: FeatureReader) -> None:
    """Sums over positions in bfloat16 would lose all but two digits."""
    low = replace(reader, autocast=torch.bfloat16)
    for exact, rough in (
        (reader.features(_tiles()), low.features(_tiles())),
        (reader.upscale(_tiles()), low.upscale(_tiles())),
    ):
        assert rough.dtype == torch.float32
        assert not torch.equal(rough, exact)
        assert float((rough - exact).abs().max()) < 0.05 * float(exact.abs().max())
