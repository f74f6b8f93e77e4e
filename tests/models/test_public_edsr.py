from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from idc_ray.errors import BadRequest
from idc_ray.models import load_teacher, load_upscaler

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def conv(inside: int, outside: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * (0.1 if x.shape[1] == 256 else 1.0)


class Published(nn.Module):
    """EDSR as its authors describe it, on values up to 255, under the names of their code."""

    def __init__(self, scale: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        for shift, sign in ((self.sub_mean, -1), (self.add_mean, 1)):
            shift.weight.data = torch.eye(3).view(3, 3, 1, 1)
            shift.bias.data = sign * 255 * MEAN  # type: ignore[union-attr]
        self.head = nn.Sequential(conv(3, channels))
        self.body = nn.Sequential(*(Block(channels) for _ in range(blocks)), conv(channels, channels))
        factors = {2: [2], 3: [3], 4: [2, 2]}[scale]
        stages = [layer for f in factors for layer in (conv(channels, f * f * channels), nn.PixelShuffle(f))]
        self.tail = nn.Sequential(nn.Sequential(*stages), conv(channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(x) + x))


def basicsr_names(weights: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """The same weights as BasicSR's EDSR has them."""
    names = {"head.0": "conv_first", f"body.{blocks}": "conv_after_body", "tail.1": "conv_last"}
    names |= {f"body.{i}.body.{j}": f"body.{i}.conv{1 + j // 2}" for i in range(blocks) for j in (0, 2)}
    names |= {f"tail.0.{j}": f"upsample.{j}" for j in (0, 2)}
    return {
        f"{names[storage]}.{kind}": value
        for key, value in weights.items()
        for storage, _, kind in [key.rpartition(".")]
        if storage in names
    }


@pytest.mark.parametrize(("scale", "channels", "blocks"), [(2, 8, 3), (3, 8, 1), (4, 12, 2), (2, 256, 1)])
@pytest.mark.parametrize("basicsr", [False, True])
def test_a_public_checkpoint_gives_the_output_of_the_original_network(
    scale: int, channels: int, blocks: int, basicsr: bool
) -> None:
    """Catches biases of the wrong range (a shift of colour), and the large network's forgotten residual factor."""
    torch.manual_seed(0)
    network = Published(scale, channels, blocks)
    weights = network.state_dict()
    content = {"params": basicsr_names(weights, blocks)} if basicsr else weights
    image = torch.rand(1, 3, 9, 14)
    expected = (network(255 * image) / 255).clamp(0, 1)
    upscaled = load_upscaler(saved(content), scale=scale).upscale(image)
    assert torch.allclose(upscaled, expected, atol=1e-5)
    assert expected.std() > 0.01
    assert load_teacher(saved(content), scale=scale).features(image).shape == (1, channels, 9, 14)


def test_other_channels_colours_and_damage_are_refused() -> None:
    weights = Published(2, 8, 1).state_dict()
    with pytest.raises(BadRequest, match="mean colour"):
        load_upscaler(saved({**weights, "sub_mean.bias": torch.zeros(3)}), scale=2)
    with pytest.raises(BadRequest, match="1 channels; expected RGB"):
        load_upscaler(saved({**weights, "head.0.weight": torch.zeros(8, 1, 3, 3)}), scale=2)
    with pytest.raises(BadRequest, match="expected 4 or 9 times"):
        load_upscaler(saved({**weights, "tail.0.0.weight": torch.zeros(200, 8, 3, 3)}), scale=2)
    with pytest.raises(BadRequest, match="network for x2"):
        load_upscaler(saved(weights), scale=4)
    del weights["body.0.body.2.weight"]
    with pytest.raises(BadRequest, match="conv2"):
        load_upscaler(saved(weights), scale=2)
