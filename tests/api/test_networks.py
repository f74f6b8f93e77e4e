from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import idc_ray
from idc_ray.errors import BadRequest
from idc_ray.models import ModelSpec, checkpoint_bytes
from tests.condensation.conftest import picture


@pytest.fixture(scope="module")
def model() -> idc_ray.Upscaler:
    return idc_ray.load_model("bundled", scale=2, device="cpu")


def test_the_scale_is_read_from_a_checkpoint(tmp_path: Path) -> None:
    """Catches a scale that has to be known beforehand, and another one that passes unseen."""
    spec = ModelSpec("edsr", 3, {"channels": 8, "blocks": 1})
    file = tmp_path / "student.safetensors"
    file.write_bytes(checkpoint_bytes(spec, spec.build().state_dict()))
    loaded = idc_ray.load_model(file)
    assert (loaded.scale, loaded.name) == (3, "student.safetensors")
    assert "x3" in repr(loaded)
    assert idc_ray.upscale(loaded, picture(20, 24)).shape == (60, 72, 3)
    with pytest.raises(BadRequest, match=r"student.safetensors is a network for x3.*use --scale 3"):
        idc_ray.load_model(file, scale=2)


def test_an_image_comes_out_as_the_network_makes_it(model: idc_ray.Upscaler) -> None:
    """Catches an output that is not rounded, and a tensor whose channels are mistaken for rows."""
    image = picture(20, 24)
    expected = model.upscale_image(image)
    assert np.array_equal(idc_ray.upscale(model, image), expected)
    assert np.array_equal(idc_ray.upscale(model, torch.from_numpy(image).permute(2, 0, 1)), expected)
    tiled = idc_ray.upscale(model, image, tile=20, tile_overlap=18)
    assert tiled.shape == expected.shape and np.abs(tiled.astype(int) - expected).max() <= 4
    assert not np.array_equal(idc_ray.upscale(model, image, ensemble=True), expected)


def test_what_cannot_be_done_is_refused(model: idc_ray.Upscaler) -> None:
    with pytest.raises(BadRequest, match="tile_overlap is 16; expected at least 0 and less than tile, 16"):
        idc_ray.upscale(model, picture(), tile=16)
    with pytest.raises(BadRequest, match="model is a Conv2d; expected a network from idc_ray.load_model"):
        idc_ray.upscale(torch.nn.Conv2d(3, 3, 3), picture())  # type: ignore[arg-type]
    with pytest.raises(BadRequest, match="which exists for x2 and x4; give scale=2 or scale=4"):
        idc_ray.load_model("bundled")
    with pytest.raises(BadRequest, match=r"nowhere.safetensors cannot be read"):
        idc_ray.load_model("nowhere.safetensors")
