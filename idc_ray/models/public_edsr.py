"""Public EDSR checkpoints, which spandrel does not support: BasicSR's and the authors' (EDSR-PyTorch).

Both expect values up to 255, :class:`idc_ray.models.EDSR` values up to 1. ReLU commutes with positive factors, so
dividing every bias by 255 converts them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from idc_ray.errors import BadRequest
from idc_ray.models.edsr import DIV2K_MEAN
from idc_ray.models.registry import ModelSpec

#: Largest pixel value in the published networks.
RANGE = 255.0

#: The paper's large network (section 4.2) scales its residuals by 0.1, which its checkpoints do not record.
LARGE_CHANNELS, LARGE_RES_SCALE = 256, 0.1

BASICSR = {
    "conv_first.weight",
    "body.0.conv1.weight",
    "conv_after_body.weight",
    "upsample.0.weight",
    "conv_last.weight",
}
AUTHORS = {"head.0.weight", "body.0.body.0.weight", "tail.0.0.weight", "tail.1.weight", "sub_mean.bias"}


def is_edsr(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is an EDSR's, with BasicSR's or the authors' names."""
    return weights.keys() >= BASICSR or weights.keys() >= AUTHORS


def edsr_weights(weights: Mapping[str, Tensor], name: str) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Spec and state dict of the :class:`idc_ray.models.EDSR` equal to a published one.

    Raises:
        BadRequest: not for RGB images, another mean colour than DIV2K's, or incomplete.
    """
    converted = dict(weights) if "conv_first.weight" in weights else _from_authors(weights, name)
    converted = {key: value / RANGE if key.endswith(".bias") else value for key, value in converted.items()}
    first, up = converted["conv_first.weight"], converted["upsample.0.weight"]
    if first.shape[1] != 3 or converted["conv_last.weight"].shape[0] != 3:
        raise BadRequest(f"{name} is an EDSR for {first.shape[1]} channels; expected RGB")
    channels = first.shape[0]
    scale = 4 if "upsample.2.weight" in converted else {4: 2, 9: 3}.get(up.shape[0] // channels)
    if scale is None:
        raise BadRequest(
            f"{name} is an EDSR whose upsampler turns {channels} channels into {up.shape[0]}; expected 4 or 9 times as "
            "many"
        )
    blocks = 1 + max(int(key.split(".")[1]) for key in converted if key.startswith("body."))
    res_scale = LARGE_RES_SCALE if channels == LARGE_CHANNELS else 1.0
    return ModelSpec("edsr", scale, {"channels": channels, "blocks": blocks, "res_scale": res_scale}), converted


def _from_authors(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    mean = -weights["sub_mean.bias"] / RANGE
    if not torch.allclose(mean, torch.tensor(DIV2K_MEAN), atol=1e-4):
        raise BadRequest(
            f"{name} is an EDSR that subtracts the mean colour {mean.tolist()}; expected {list(DIV2K_MEAN)}"
        )
    last = max(int(key.split(".")[1]) for key in weights if key.startswith("body."))
    names = [
        (r"head\.0", "conv_first"),
        (rf"body\.{last}(?=\.(weight|bias))", "conv_after_body"),
        (r"body\.(\d+)\.body\.0", r"body.\1.conv1"),
        (r"body\.(\d+)\.body\.2", r"body.\1.conv2"),
        (r"tail\.0\.", "upsample."),
        (r"tail\.1", "conv_last"),
    ]
    renamed = {}
    for key, value in weights.items():
        if key.startswith(("sub_mean.", "add_mean.")):
            continue
        for pattern, replacement in names:
            key, found = re.subn(f"^{pattern}", replacement, key)
            if found:
                break
        renamed[key] = value
    return renamed
