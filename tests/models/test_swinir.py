from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idc_ray.errors import BadRequest
from idc_ray.models import SwinIR, create_model, load_teacher, model_spec
from idc_ray.models.registry import ModelSpec
from tests.models.conftest import save_checkpoint

#: Small, with everything that the large one has.
SMALL: dict[str, Any] = {"channels": 12, "blocks": 2, "layers": 2, "heads": 2, "window": 8, "image_size": 16}
SIZES = [(16, 24), (19, 37)]


def with_random_weights(model: nn.Module) -> nn.Module:
    """No weight at its initial value: zero biases and unit norms hide what is left out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model.eval()


def images(height: int, width: int) -> Tensor:
    return torch.rand((2, 3, height, width), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_pictures(ours: nn.Module, other: nn.Module) -> None:
    for size in SIZES:
        expected = other(images(*size))
        torch.testing.assert_close(ours(images(*size)), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("scale", "expected"), [(2, 910_152), (3, 918_267), (4, 929_628)])
def test_parameter_counts_are_the_published_ones(scale: int, expected: int) -> None:
    """Catches a missing norm or bias, or buffers that are counted as parameters."""
    assert sum(p.numel() for p in create_model("swinir_light", scale).parameters()) == expected


def test_buffers_are_the_published_ones() -> None:
    """Catches checkpoints without the tables from which other readers take window and image size."""
    state = create_model("swinir_light", 2).state_dict()
    masks = {name: value for name, value in state.items() if name.endswith("attn_mask")}
    tables = {name: value for name, value in state.items() if name.endswith("relative_position_index")}
    assert set(masks) == {f"layers.{i}.residual_group.blocks.{j}.attn_mask" for i in range(4) for j in (1, 3, 5)}
    assert {tuple(mask.shape) for mask in masks.values()} == {(64, 64, 64)}
    assert {(tuple(table.shape), table.dtype) for table in tables.values()} == {((64, 64), torch.int64)}
    assert len(tables) == 24


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_spandrel_opens_our_checkpoints(spandrel: ModuleType, tmp_path: Path) -> None:
    """The published size: same picture, whole windows or not."""
    ours = with_random_weights(create_model("swinir_light", 2))
    save_checkpoint(tmp_path / "a.safetensors", model_spec("swinir_light", 2), ours.state_dict())
    descriptor = spandrel.ModelLoader().load_from_file(tmp_path / "a.safetensors")
    assert (descriptor.architecture.id, descriptor.scale, descriptor.input_channels) == ("SwinIR", 2, 3)
    assert_same_pictures(ours, descriptor.model.eval())


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_spandrel_opens_the_published_wrapping(spandrel: ModuleType, tmp_path: Path) -> None:
    ours = with_random_weights(SwinIR(4, **SMALL))
    torch.save({"params": ours.state_dict()}, tmp_path / "a.pth")
    assert_same_pictures(ours, spandrel.ModelLoader().load_from_file(tmp_path / "a.pth").model.eval())


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_we_open_what_spandrel_saves(spandrel: ModuleType, scale: int) -> None:
    """Strictly: every name, shape and buffer."""
    from spandrel.architectures.SwinIR import SwinIR as Theirs

    theirs = with_random_weights(
        Theirs(
            img_size=16,
            embed_dim=12,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=8,
            mlp_ratio=2.0,
            upscale=scale,
            upsampler="pixelshuffledirect",
        )
    )
    ours = SwinIR(scale, **SMALL).eval()
    buffers = {name: value.clone() for name, value in ours.named_buffers() if name != "mean"}
    ours.load_state_dict(theirs.state_dict())
    for name, value in buffers.items():  # computed by us before theirs came in
        assert torch.equal(value, theirs.state_dict()[name]), name
    assert_same_pictures(ours, theirs)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 9), (16, 8)])
def test_any_size_is_upscaled(height: int, width: int) -> None:
    """Catches a reflection that needs an image larger than its padding."""
    out = SwinIR(3, **SMALL).eval()(images(height, width))
    assert out.shape == (2, 3, 3 * height, 3 * width)
    assert out.isfinite().all()


def test_results_do_not_depend_on_the_rest_of_the_batch() -> None:
    model = with_random_weights(SwinIR(2, **SMALL))
    x = images(16, 16)
    with torch.no_grad():
        assert torch.equal(model(x)[0], model(torch.stack((x[0], 1 - x[1])))[0])
        assert torch.equal(model(x), model(x))


def test_residuals_are_dropped_in_training_only_and_kept_in_the_mean() -> None:
    """Catches noise in evaluation, and a residual that shrinks by the drop rate."""
    model = SwinIR(2, **SMALL, drop_path=0.4).train()
    torch.manual_seed(0)
    factors = model._kept(400, torch.device("cpu"))
    assert len(factors) == 4
    assert factors[0].shape == (2, 400, 1, 1, 1)
    assert torch.equal(factors[0], torch.ones(2, 400, 1, 1, 1))
    torch.testing.assert_close(factors[-1].unique(), torch.tensor([0, 1 / 0.6]))
    assert not torch.equal(factors[-1][0], factors[-1][1])
    assert factors[-1].mean() == pytest.approx(1, abs=0.1)
    assert model.eval()._kept(400, torch.device("cpu")) == [None] * 4


def test_a_dropped_residual_leaves_its_sample_as_it_is() -> None:
    """Catches factors that go to another sample, or to the other residual."""
    model = with_random_weights(SwinIR(2, **SMALL))
    layer = model.layers[0].residual_group.blocks[0]
    x = torch.randn((2, 3, 64, 12), generator=torch.Generator().manual_seed(0))
    bias = torch.zeros(2, 64, 64)
    with torch.no_grad():
        attended = x + layer.attn(layer.norm1(x), bias, None)
        kept = torch.tensor([[1.0, 0.0], [0.0, 2.0]])[..., None, None, None]
        out = layer(x, bias, None, kept)
        torch.testing.assert_close(out[0], attended[0])
        torch.testing.assert_close(out[1], (x + 2 * layer.mlp(layer.norm2(x)))[1])


def test_bfloat16_training_is_close_to_float32() -> None:
    """Catches a mixture of types that an operation refuses where residuals are dropped."""
    model = with_random_weights(SwinIR(2, **SMALL)).train()
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(images(16, 16))
    torch.manual_seed(0)
    high = model(images(16, 16))
    assert (low.float() - high).abs().max() < 0.05 * high.abs().max()
    low.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 50}, "channels is 50.*heads, 6"),
        ({"image_size": 8}, "image_size is 8"),
        ({"image_size": 20}, "20"),
    ],
)
def test_what_cannot_be_built_is_a_bad_request(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        ModelSpec("swinir", 2, arguments).build()


def test_scale_5_is_a_bad_request() -> None:
    with pytest.raises(BadRequest, match="scale is 5; SwinIR supports 1, 2, 3 and 4"):
        create_model("swinir_light", 5)


def test_a_teacher(tmp_path: Path) -> None:
    """The tile of the default job with its padding: features before the upsampler, at the tile's size."""
    spec = ModelSpec("swinir", 2, SMALL)
    model = with_random_weights(spec.build())
    save_checkpoint(tmp_path / "a", spec, model.state_dict())
    teacher = load_teacher(tmp_path / "a", scale=2)
    assert (teacher.feature_layer, teacher.channels) == ("conv_after_body", 12)
    teacher.check_tile(48)
    tile = images(48, 48).requires_grad_()
    features, out = teacher.features_and_upscale(tile)
    assert features.shape == (2, 12, 48, 48)
    assert torch.equal(out, model(tile).clamp(0, 1))
    assert torch.autograd.grad(features.square().sum(), tile)[0].abs().min() > 0
    with pytest.raises(BadRequest, match=r"window.*--tile-size|--tile-size.*window"):
        teacher.check_tile(20)
