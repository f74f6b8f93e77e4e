from __future__ import annotations

import numpy as np
import pytest
import torch

from idc_ray.condensation.load import load_condenser, load_networks
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import CondenseConfig
from idc_ray.config.condense import BUNDLED_SCALES as CONFIG_SCALES
from idc_ray.errors import BadRequest
from idc_ray.models import ModelSpec, bundled_teacher_bytes, checkpoint_bytes
from idc_ray.models.load import BUNDLED_SCALES
from tests.condensation.conftest import picture, small_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint() -> bytes:
    torch.manual_seed(1)
    spec = ModelSpec("edsr", 2, {"channels": 8, "blocks": 1})
    return checkpoint_bytes(spec, spec.build().state_dict())


def _condensed(config: CondenseConfig, data: bytes) -> Condensed:
    (result,) = load_condenser(config, data, CPU).condense([ImageTask("0" * 16, picture())])
    assert isinstance(result, Condensed), result
    return result


@pytest.mark.parametrize("method", ["idc", "ncfd", "hardest", "kcenter"])
def test_the_feature_network_determines_tiles_and_the_teacher_labels(checkpoint: bytes, method: str) -> None:
    """Catches features or difficulty of the teacher with a guide, and labels of the guide."""
    guided = _condensed(small_config(method=method, feature_network="bundled"), checkpoint)
    by_bundled = _condensed(small_config(method=method), bundled_teacher_bytes(2))
    by_teacher = _condensed(small_config(method=method, feature_network="teacher"), checkpoint)
    assert np.array_equal(guided.lr_tiles, by_bundled.lr_tiles)
    assert not np.array_equal(guided.lr_tiles, by_teacher.lr_tiles)
    assert (guided.loss_start, guided.loss_end) == (by_bundled.loss_start, by_bundled.loss_end)
    _, teacher = load_networks(small_config(), checkpoint, CPU)
    tiles = torch.from_numpy(guided.lr_tiles).permute(0, 3, 1, 2).float() / 255
    labels = teacher.upscale(tiles).mul(255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(labels - guided.hr_tiles).max() <= 1  # the batch size may move a value across a half
    assert np.abs(guided.hr_tiles.astype(int) - by_bundled.hr_tiles).max() > 1


def test_difficulty_is_the_guides(checkpoint: bytes) -> None:
    """Else images get budgets by one network and are weighed by another."""
    guided = load_condenser(small_config(feature_network="bundled"), checkpoint, CPU).difficulty(picture())
    assert guided == load_condenser(small_config(), bundled_teacher_bytes(2), CPU).difficulty(picture())


def test_a_guide_is_another_run() -> None:
    """Else a run with another guide would continue with the tiles of the first."""
    assert small_config(feature_network="bundled").digest("0" * 64) != small_config(feature_network="teacher").digest(
        "0" * 64
    )


@pytest.mark.parametrize(
    ("changes", "feature_network"),
    [({}, "bundled"), ({"scale": 3}, "teacher"), ({"scale": 4}, "bundled"), ({"rlff__feature_layer": "a"}, "teacher")],
)
def test_the_default_feature_network(changes: dict[str, object], feature_network: str) -> None:
    """Catches scale 3 without a guide, a layer that is searched in another network, and one run under two digests."""
    config = small_config(**changes)
    assert config.resolved_feature_network == feature_network
    assert config.digest("0" * 64) == small_config(**changes, feature_network=feature_network).digest("0" * 64)


def test_scales_that_a_guide_is_bundled_for() -> None:
    """The configuration has them from itself: it is read where torch is not."""
    assert CONFIG_SCALES == BUNDLED_SCALES


def test_the_bundled_teacher_is_its_own_feature_network() -> None:
    """Else each worker holds it twice."""
    guide, labeler = load_networks(small_config(), bundled_teacher_bytes(2), CPU)
    assert guide is labeler


def test_incompatible_settings_are_refused(checkpoint: bytes) -> None:
    with pytest.raises(
        BadRequest, match="feature_network is bundled: no teacher is bundled for scale 3.*--feature-network teacher"
    ):
        load_networks(small_config(feature_network="bundled", scale=3), checkpoint, CPU)
    with pytest.raises(
        BadRequest, match=r"feature_network is bundled: .* no layer 'body\.17'.*--feature-network teacher"
    ):
        load_networks(small_config(feature_network="bundled", rlff__feature_layer="body.17"), checkpoint, CPU)
    with pytest.raises(BadRequest, match=r"the teacher.*--scale 2"):
        load_networks(small_config(feature_network="bundled", scale=4), checkpoint, CPU)
