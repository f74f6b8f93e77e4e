from __future__ import annotations

import io

import pytest
import torch

from idc_ray.errors import BadRequest
from idc_ray.models import load_teacher, load_upscaler
from idc_ray.models.mambairv2 import MambaIRv2
from idc_ray.models.public_mambairv2 import mambairv2_spec
from idc_ray.models.registry import model_spec


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def small() -> MambaIRv2:
    torch.manual_seed(0)
    return MambaIRv2(4, channels=12, blocks=2, layers=2, heads=3, window=8, states=4, mlp_ratio=2.0, rank=6, prompts=5)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"params": w}, lambda w: {"params_ema": w, "params": {}}])
def test_a_public_checkpoint_is_recognised_and_gives_its_output(wrap: object) -> None:
    """Catches a wrong guess of a setting: sizes differ from the defaults in every one."""
    network = small().eval()
    data = saved(wrap(network.state_dict()))  # type: ignore[operator]
    image = torch.rand(1, 3, 16, 24)
    assert torch.equal(load_upscaler(data, scale=4).upscale(image), network(image).clamp(0, 1))
    assert load_teacher(data, scale=4).features(image).shape == (1, 12, 16, 24)


def test_the_published_settings_are_found_again() -> None:
    spec = model_spec("mambairv2_light", 2)
    assert mambairv2_spec(spec.build().state_dict(), "x") == spec


def test_what_is_not_supported_or_incomplete_is_refused() -> None:
    weights = small().state_dict()
    with pytest.raises(BadRequest, match="large MambaIRv2"):
        load_upscaler(saved({**weights, "conv_before_upsample.0.weight": torch.zeros(1)}), scale=4)
    del weights["layers.0.residual_group.layers.0.embeddingA.weight"]
    with pytest.raises(BadRequest, match=r"embeddingA.* is missing"):
        load_upscaler(saved(weights), scale=4)
    with pytest.raises(BadRequest, match="network for x4"):
        load_upscaler(saved(small().state_dict()), scale=2)
