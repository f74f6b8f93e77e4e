from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idc_ray.errors import BadRequest
from idc_ray.models import MambaIRv2, create_model, load_checkpoint, load_teacher
from idc_ray.models.registry import ModelSpec
from tests.models.conftest import save_checkpoint

SMALL: dict[str, Any] = {
    "channels": 12,
    "blocks": 1,
    "layers": 2,
    "heads": 2,
    "window": 4,
    "states": 3,
    "mlp_ratio": 2.0,
    "rank": 5,
    "prompts": 6,
}

#: One attentive layer of the published MambaIRv2-light.
LAYER = {
    "scale1": (48,),
    "scale2": (48,),
    **{f"norm{i}.{kind}": (48,) for i in (1, 2, 3, 4) for kind in ("weight", "bias")},
    "wqkv.weight": (144, 48),
    "wqkv.bias": (144,),
    "win_mhsa.relative_position_bias_table": (961, 4),
    "win_mhsa.proj.weight": (48, 48),
    "win_mhsa.proj.bias": (48,),
    "assm.selectiveScan.x_proj_weight": (1, 19, 48),
    "assm.selectiveScan.dt_projs_weight": (1, 48, 3),
    "assm.selectiveScan.dt_projs_bias": (1, 48),
    "assm.selectiveScan.A_logs": (48, 8),
    "assm.selectiveScan.Ds": (48,),
    "assm.out_norm.weight": (48,),
    "assm.out_norm.bias": (48,),
    "assm.out_proj.weight": (48, 48),
    "assm.out_proj.bias": (48,),
    "assm.in_proj.0.weight": (48, 48, 1, 1),
    "assm.in_proj.0.bias": (48,),
    "assm.CPE.0.weight": (48, 1, 3, 3),
    "assm.CPE.0.bias": (48,),
    "assm.embeddingB.weight": (64, 32),
    "assm.route.0.weight": (16, 48),
    "assm.route.0.bias": (16,),
    "assm.route.2.weight": (64, 16),
    "assm.route.2.bias": (64,),
    **{
        f"convffn{i}.{name}": shape
        for i in (1, 2)
        for name, shape in {
            "fc1.weight": (48, 48),
            "fc1.bias": (48,),
            "sg.norm.weight": (24,),
            "sg.norm.bias": (24,),
            "sg.conv.weight": (24, 1, 5, 5),
            "sg.conv.bias": (24,),
            "fc2.weight": (48, 24),
            "fc2.bias": (48,),
        }.items()
    },
    "embeddingA.weight": (32, 8),
}
#: What the published network has outside the layers, at x2.
FRAME = {
    "relative_position_index_SA": (256, 256),
    "conv_first.weight": (48, 3, 3, 3),
    "conv_first.bias": (48,),
    "patch_embed.norm.weight": (48,),
    "patch_embed.norm.bias": (48,),
    "norm.weight": (48,),
    "norm.bias": (48,),
    "conv_after_body.weight": (48, 48, 3, 3),
    "conv_after_body.bias": (48,),
    "upsample.0.weight": (12, 48, 3, 3),
    "upsample.0.bias": (12,),
    **{f"layers.{i}.conv.weight": (48, 48, 3, 3) for i in range(4)},
    **{f"layers.{i}.conv.bias": (48,) for i in range(4)},
}


def test_names_and_shapes_are_the_published_ones() -> None:
    """MambaIRv2Light of the authors' code with the settings of train_MambaIRv2_lightSR_x2.yml."""
    layers = {
        f"layers.{i}.residual_group.layers.{j}.{name}": shape
        for i in range(4)
        for j in range(5)
        for name, shape in LAYER.items()
    }
    state = create_model("mambairv2_light", 2).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == FRAME | layers


@pytest.mark.parametrize(("scale", "expected"), [(2, 774_092), (3, 780_587), (4, 789_680)])
def test_parameter_counts_are_the_published_ones(scale: int, expected: int) -> None:
    """0.774 M at x2 and 0.790 M at x4; catches a missing bias, or a prompt pool too many."""
    assert sum(p.numel() for p in create_model("mambairv2_light", scale).parameters()) == expected


def with_given_weights(model: nn.Module) -> nn.Module:
    """Weights and image of the golden values: from formulas, so that they depend on no random generator."""

    def value(storage: int, like: Tensor) -> Tensor:
        k = torch.arange(like.numel(), dtype=torch.float64)
        return (0.5 * torch.sin(0.57 * k.square() + storage)).view(like.shape)

    state = model.state_dict()
    weights = {
        name: value(storage, state[name]) if state[name].is_floating_point() else state[name]
        for storage, name in enumerate(sorted(state))
    }
    model.load_state_dict(weights)
    return model.eval()


def given_images() -> Tensor:
    return torch.sin(2.3 * torch.arange(324.0, dtype=torch.float64)).view(2, 3, 6, 9) / 2 + 0.5


def test_the_picture_is_that_of_the_published_equations() -> None:
    """Golden values, computed once in float64 by the authors' modules with a position-by-position scan, the Gumbel
    noise left out and a stable sort. Three prompts are chosen in each layer; the image is not of whole windows.
    Catches any step that is left out or out of order, such as prompts sorted along with their pixels.
    """
    model = with_given_weights(MambaIRv2(3, **SMALL).double())
    with torch.no_grad():
        out = model(given_images())
    first = [-7.33634253, 7.47778190, 2.63819550, 2.82700435, -8.23662280, 5.51444901, 1.47469245]
    second = [-5.85333613, -0.29777667, 4.83043921, 11.77472222, -9.27917576, 6.56590504, 5.70632931]
    expected = torch.tensor([first, second], dtype=torch.float64)
    torch.testing.assert_close(out.flatten(1)[:, ::211], expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(model.float()(given_images().float())[1], out[1].float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 9), (4, 8)])
def test_any_size_is_upscaled(height: int, width: int) -> None:
    """Catches a reflection that needs an image as large as its padding."""
    out = MambaIRv2(4, **SMALL).eval()(torch.rand(2, 3, height, width))
    assert out.shape == (2, 3, 4 * height, 4 * width)
    assert out.isfinite().all()


def test_evaluation_is_deterministic_and_independent_of_the_batch() -> None:
    """Catches the Gumbel noise of training in evaluation, and sequences that run on into the next image."""
    model = with_given_weights(MambaIRv2(2, **SMALL)).float()
    x = given_images().float()
    with torch.no_grad():
        out = model(x)
        assert torch.equal(out, model(x))
        assert torch.equal(out[0], model(torch.stack((x[0], 1 - x[1])))[0])
        assert torch.equal(out[1], model(x.flip(0))[0])


def test_training_draws_prompts_and_trains_all_of_them() -> None:
    """Catches a routing that gets no gradient, and parameters that workers in parallel would wait for in vain."""
    torch.manual_seed(0)
    model = MambaIRv2(2, **SMALL).train()
    x = given_images().float()
    torch.manual_seed(1)
    out = model(x)
    assert not torch.equal(out, model(x))
    torch.manual_seed(1)
    assert torch.equal(out, model(x))
    out.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    assert all(layer.assm.route[2].weight.grad.abs().max() > 0 for layer in model.layers[0].residual_group.layers)


def test_initial_step_sizes_and_rates_are_mambas() -> None:
    """Catches an initialisation that overwrites what makes states neither freeze nor forget."""
    scan = create_model("mambairv2_light", 2).layers[0].residual_group.layers[0].assm.selectiveScan
    steps = nn.functional.softplus(scan.dt_projs_bias)
    assert 0.0009 < steps.min() < 0.005
    assert 0.03 < steps.max() < 0.11
    torch.testing.assert_close(scan.A_logs.exp()[7], torch.arange(1.0, 9.0))


def test_bfloat16_training_is_close_to_float32() -> None:
    """Catches states in bfloat16, and a mixture of types that a scan or a gather refuses."""
    model = MambaIRv2(2, **SMALL).eval()
    x = given_images().float()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    low.float().square().mean().backward()
    assert (low.float() - model(x)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"channels": 50}, "channels is 50.*heads, 4"), ({"mlp_ratio": 0.4}, "is 19; expected an even")],
)
def test_what_cannot_be_built_is_a_bad_request(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        ModelSpec("mambairv2", 2, arguments).build()


def test_a_checkpoint_and_a_teacher(tmp_path: Path) -> None:
    """The tile of the default job with its padding: features before the upsampler, at the tile's size."""
    spec = ModelSpec("mambairv2", 2, SMALL | {"window": 16})
    model = with_given_weights(spec.build())
    save_checkpoint(tmp_path / "a", spec, model.state_dict())
    assert load_checkpoint((tmp_path / "a").read_bytes()).spec == spec
    teacher = load_teacher(tmp_path / "a", scale=2)
    assert (teacher.feature_layer, teacher.channels) == ("conv_after_body", 12)
    teacher.check_tile(48)
    tile = torch.rand((2, 3, 48, 48), generator=torch.Generator().manual_seed(1), requires_grad=True)
    features, out = teacher.features_and_upscale(tile)
    assert features.shape == (2, 12, 48, 48)
    assert torch.equal(out, model(tile).clamp(0, 1))
    assert torch.autograd.grad(features.square().sum(), tile)[0].abs().max() > 0
    with pytest.raises(BadRequest, match="tile-size"):
        teacher.check_tile(40)
