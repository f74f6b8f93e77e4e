"""Creating a condenser from a configuration and a teacher's checkpoint."""

from __future__ import annotations

import torch

from idc_ray.condensation.condenser import Condenser
from idc_ray.config import CondenseConfig
from idc_ray.errors import BadRequest
from idc_ray.models import Teacher, Upscaler, bundled_teacher_bytes, load_teacher, load_upscaler


def load_condenser(
    config: CondenseConfig, data: bytes, device: torch.device, mean_difficulty: float | None = None
) -> Condenser:
    """The condenser of a run.

    Args:
        config: the run's.
        data: content of the teacher's checkpoint.
        device: where to compute.
        mean_difficulty: see :class:`Condenser`.

    Raises:
        BadRequest: as :func:`load_networks`.
    """
    feature_network, teacher = load_networks(config, data, device)
    return Condenser(feature_network, config, device, mean_difficulty, teacher)


def load_networks(config: CondenseConfig, data: bytes, device: torch.device) -> tuple[Teacher, Upscaler]:
    """The feature network and the network that makes the labels; they may be the same.

    Raises:
        BadRequest: the checkpoint is none for this scale, a network does not take the run's tiles or has no such
            feature layer, or none is bundled for this scale.
    """
    layer = config.rlff.feature_layer
    if config.resolved_feature_network == "teacher":
        teacher = load_teacher(data, scale=config.scale, feature_layer=layer, device=device, name="the teacher")
        _prepare(teacher, config)
        return teacher, teacher
    try:
        bundled = bundled_teacher_bytes(config.scale)
        feature_network = load_teacher(
            bundled, scale=config.scale, feature_layer=layer, device=device, name="the bundled feature network"
        )
    except BadRequest as error:
        raise BadRequest(f"feature_network is bundled: {error}; or set --feature-network teacher") from None
    same = data == bundled
    labeler = feature_network if same else load_upscaler(data, scale=config.scale, device=device, name="the teacher")
    for network in (feature_network, labeler):
        _prepare(network, config)
    return feature_network, labeler


def _prepare(network: Upscaler, config: CondenseConfig) -> None:
    network.check_tile(config.tile_size)
    if (
        network.device.type == "cpu" or config.actors.dtype == "bfloat16"
    ):  # where convolutions are faster in this layout
        network.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
