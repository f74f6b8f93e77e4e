from __future__ import annotations

from pathlib import Path

import pytest
import torch

from idc_ray.errors import BadRequest
from idc_ray.models.load import load_teacher
from idc_ray.models.registry import ModelSpec, create_model, list_models, model_spec, register_model
from tests.models.conftest import save_checkpoint


def test_a_named_model_is_built_with_its_own_arguments() -> None:
    """Catches a registry that forgets the scale or hands out the class's defaults."""
    small, baseline = (create_model(name, 3) for name in ("edsr_small", "edsr_baseline"))
    x = torch.zeros(1, 3, 5, 7)
    assert small(x).shape == baseline(x).shape == (1, 3, 15, 21)
    assert small.conv_first.out_channels == 32
    assert baseline.conv_first.out_channels == 64


def test_list_models_takes_wildcards() -> None:
    assert list_models("edsr*") == ["edsr_baseline", "edsr_small"]
    assert list_models("*small") == ["edsr_small"]
    assert list_models("no_such*") == []
    assert set(list_models("edsr*")) <= set(list_models())


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    ("name", "channels"), [("edsr_baseline", 64), ("edsr_small", 32), ("mambairv2_light", 48), ("swinir_light", 60)]
)
def test_every_model_can_be_saved_and_used_as_a_teacher(name: str, channels: int, scale: int, tmp_path: Path) -> None:
    """Catches a model whose spec does not survive JSON, or of which no features before the upsampler are found."""
    spec = model_spec(name, scale)
    save_checkpoint(tmp_path / "a", spec, spec.build().state_dict())
    teacher = load_teacher(tmp_path / "a", scale=scale)
    assert (teacher.feature_layer, teacher.channels) == ("conv_after_body", channels)
    assert name in list_models()


def test_a_misspelt_model_is_answered_with_the_nearest() -> None:
    with pytest.raises(BadRequest, match=r"'edsr_smal'.*did you mean edsr_small"):
        create_model("edsr_smal", 2)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(BadRequest, match="expected one of: edsr_baseline, edsr_small"):
        create_model("xyzzy", 2)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("edsl", 2), "did you mean edsr"),
        (ModelSpec("edsr", 2, {"chanels": 8}), "chanels"),
        (ModelSpec("edsr", 5), "scale is 5"),
        (ModelSpec("edsr", 2, {"channels": -1}), "architecture 'edsr' with .*-1"),
        (ModelSpec("edsr", 2, {"blocks": "six"}), "architecture 'edsr' with .*six"),
        (ModelSpec("swinir", 2, {"heads": 0}), "architecture 'swinir' with .*heads"),
    ],
)
def test_a_spec_that_cannot_be_built_is_a_bad_request(spec: ModelSpec, message: str) -> None:
    """Catches a TypeError from deep inside torch for what a user's checkpoint says."""
    with pytest.raises(BadRequest, match=message):
        spec.build()


def test_a_name_cannot_be_taken_twice() -> None:
    """Catches a second model that silently replaces the first."""

    def edsr_small(scale: int) -> ModelSpec:
        return ModelSpec("edsr", scale)

    with pytest.raises(ValueError, match="already registered"):
        register_model(edsr_small)
    assert model_spec("edsr_small", 2).arguments["blocks"] == 4
