"""Public EDSR checkpoints, which spandrel does not know: BasicSR's and the authors' own (EDSR-PyTorch).

Both are of networks that work on values up to 255, ours on values up to 1. ReLU commutes with positive factors, so
dividing every bias by 255 is all that lies between.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from idc_ray.errors import BadRequest
from idc_ray.models.edsr import DIV2K_MEAN
from idc_ray.models.registry import ModelSpec

__all__ = ["edsr_weights", "is_edsr"]

#: Values of a pixel in the published networks.
RANGE = 255.0

#: The paper's large network (section 4.2) scales its residuals by 0.1; its checkpoints do not say so.
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
    """Whether a state dict is one of EDSR, under either set of names."""
    return weights.keys() >= BASICSR or weights.keys() >= AUTHORS


def edsr_weights(weights: Mapping[str, Tensor], name: str) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The network that a state dict belongs to, and the state dict as ours has it.

    Raises:
        BadRequest: not of RGB images, with another mean colour than DIV2K's, or incomplete.
    """
    ours = dict(weights) if "conv_first.weight" in weights else _from_authors(weights, name)
    ours = {key: value / RANGE if key.endswith(".bias") else value for key, value in ours.items()}
    first, up = ours["conv_first.weight"], ours["upsample.0.weight"]
    if first.shape[1] != 3 or ours["conv_last.weight"].shape[0] != 3:
        raise BadRequest(f"{name} is an EDSR for {first.shape[1]} channels; expected RGB")
    channels = first.shape[0]
    scale = 4 if "upsample.2.weight" in ours else {4: 2, 9: 3}.get(up.shape[0] // channels)
    if scale is None:
        raise BadRequest(
            f"{name} is an EDSR whose upsampler widens {channels} channels to {up.shape[0]}; expected x4 or x9"
        )
    blocks = 1 + max(int(key.split(".")[1]) for key in ours if key.startswith("body."))
    res_scale = LARGE_RES_SCALE if channels == LARGE_CHANNELS else 1.0
    return ModelSpec("edsr", scale, {"channels": channels, "blocks": blocks, "res_scale": res_scale}), ours


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
    ours = {}
    for key, value in weights.items():
        if key.startswith(("sub_mean.", "add_mean.")):
            continue
        for pattern, replacement in names:
            key, found = re.subn(f"^{pattern}", replacement, key)
            if found:
                break
        ours[key] = value
    return ours
