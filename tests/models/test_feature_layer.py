from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from idc_ray.errors import BadRequest
from idc_ray.models import EDSR, load_teacher
from idc_ray.models.feature_layer import resolve_feature_layer

WIDTH = 12  # = 3 x 2 x 2: as many channels as a pixel shuffle's input at x2 has


def shuffled(x: Tensor) -> Tensor:
    return functional.pixel_shuffle(x, 2)


def shuffled_by_hand(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return x.view(b, 3, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, 3, 2 * h, 2 * w)


class Net(nn.Module):
    """No known names. ``tail`` makes the pixel shuffle's input, exactly as wide as the trunk."""

    def __init__(self, enlarge: Callable[[Tensor], Tensor] = shuffled, image_first: bool = False) -> None:
        super().__init__()
        self.shift = nn.Conv2d(3, 3, 1)  # the mean colour, as in EDSR's original code
        self.head = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.wide = nn.Conv2d(WIDTH, 2 * WIDTH, 1)
        self.narrow = nn.Conv2d(2 * WIDTH, WIDTH, 1)
        self.trunk_end = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.relu = nn.ReLU()
        self.tail = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.enlarge, self.image_first = enlarge, image_first

    def forward(self, x: Tensor) -> Tensor:
        skip = functional.interpolate(x, scale_factor=2) if self.image_first else 0
        x = self.relu(self.head(self.shift(x)))
        x = self.relu(self.tail(self.trunk_end(self.narrow(self.wide(x)))))
        return self.enlarge(x) + skip


class Upsampling(nn.Module):
    """ESRGAN's way: the map itself is enlarged, then convolved. The trunk is a container, the activation shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.trunk = nn.Sequential(nn.Conv2d(6, 6, 1), nn.PReLU())
        self.act = nn.ReLU()
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.last = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.up(self.act(self.trunk(self.act(self.first(x))))))


def test_layers_of_the_packages_models(edsr: EDSR) -> None:
    assert resolve_feature_layer(edsr, "auto") == ("conv_after_body", 8)


@pytest.mark.parametrize("enlarge", [shuffled, shuffled_by_hand, nn.PixelShuffle(2)])
def test_the_pixel_shuffles_input_is_never_taken(enlarge: Callable[[Tensor], Tensor]) -> None:
    """Catches a choice by width alone: here ``tail``, sub-pixels and not features, is as wide as the trunk."""
    assert resolve_feature_layer(Net(enlarge), "auto") == ("trunk_end", WIDTH)


def test_an_interpolated_image_is_not_taken_for_the_upsampler() -> None:
    """Catches a search that ends at a global skip connection, before the trunk has begun."""
    assert resolve_feature_layer(Net(image_first=True), "auto") == ("trunk_end", WIDTH)


def test_a_map_that_is_enlarged_itself_is_the_feature_map() -> None:
    """Also catches the shared activation, whose name would mean its first run, before the trunk."""
    assert resolve_feature_layer(Upsampling(), "auto") == ("trunk", 6)


def test_a_known_name_that_gives_no_map_is_passed_over() -> None:
    """Catches trust in a name: here it belongs to something at twice the resolution."""
    net = Upsampling()
    net.conv_body = net.last
    del net.last
    net.forward = lambda x: net.conv_body(net.up(net.trunk(net.first(x))))  # type: ignore[method-assign]
    assert resolve_feature_layer(net, "auto") == ("trunk", 6)


def test_a_network_that_enlarges_first_has_no_features() -> None:
    net = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1))
    with pytest.raises(BadRequest, match="no feature layer was found.*feature-layer"):
        resolve_feature_layer(net, "auto")


def test_a_named_layer_is_taken(edsr: EDSR) -> None:
    assert resolve_feature_layer(edsr, "body.1") == ("body.1", 8)


def test_a_misspelt_layer_is_answered_with_the_nearest(edsr: EDSR) -> None:
    with pytest.raises(BadRequest, match=r"no layer 'body\.7'; did you mean body\."):
        resolve_feature_layer(edsr, "body.7")


@pytest.mark.parametrize(("layer", "shape"), [("upsample", r"\(1, 8, 56, 84\)"), ("conv_last", r"\(1, 3, 56, 84\)")])
def test_a_layer_after_the_upsampler_is_refused_with_its_shape(edsr: EDSR, layer: str, shape: str) -> None:
    with pytest.raises(BadRequest, match=f"'{layer}' gives {shape}"):
        resolve_feature_layer(edsr, layer)


def test_a_layer_that_never_runs_is_refused(edsr: EDSR) -> None:
    edsr.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(BadRequest, match="'unused' gives no output: it is not used"):
        resolve_feature_layer(edsr, "unused")


def test_the_search_leaves_no_hooks(edsr: EDSR) -> None:
    """Also when the network fails in the middle of it."""
    resolve_feature_layer(edsr, "auto")
    edsr.upsample[0] = nn.Conv2d(5, 5, 1)  # does not fit
    with pytest.raises(RuntimeError):
        resolve_feature_layer(edsr, "body.0")
    assert all(not module._forward_hooks for module in edsr.modules())


def test_restoration_networks_have_features_at_full_resolution(spandrel: ModuleType) -> None:
    """Catches U-Nets, which enlarge nothing beyond their input, and SCUNet, which pads to multiples of 64."""
    from spandrel.architectures.NAFNet import NAFNet
    from spandrel.architectures.SCUNet import SCUNet

    unet = NAFNet(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
    assert resolve_feature_layer(unet.eval(), "auto") == ("decoders.1", 8)
    scunet = {name: value.contiguous() for name, value in SCUNet(config=[1] * 7).state_dict().items()}
    assert load_teacher(save(scunet), scale=1).feature_layer == "m_up1"


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("window", [7, 8])
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
def test_swinir(spandrel: ModuleType, window: int, upsampler: str) -> None:
    """Width 64 is also that of its convolution before the upsampler, which structure alone would take."""
    from spandrel.architectures.SwinIR import SwinIR

    torch.manual_seed(0)
    net = SwinIR(
        img_size=8 * window,
        embed_dim=64,
        depths=[2],
        num_heads=[2],
        window_size=window,
        upscale=2,
        upsampler=upsampler,
    )
    assert resolve_feature_layer(net.eval(), "auto") == ("conv_after_body", 64)
