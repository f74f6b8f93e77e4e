"""Public MambaIRv2 checkpoints, which spandrel does not support: arguments are inferred from the tensors' shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from idc_ray.errors import BadRequest
from idc_ray.models.registry import ModelSpec

FIRST = "layers.0.residual_group.layers.0."
WINDOW_INDEX, STATES = "relative_position_index_SA", FIRST + "assm.selectiveScan.A_logs"


def is_mambairv2(weights: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is a MambaIRv2's. HAT and ATD have an index of the same name, but no state space."""
    return WINDOW_INDEX in weights and STATES in weights


def mambairv2_spec(weights: Mapping[str, Tensor], name: str) -> ModelSpec:
    """Spec of the network that a state dict of the authors' code belongs to.

    Raises:
        BadRequest: it is of the large variant, which has another upsampler, or incomplete.
    """
    if "conv_before_upsample.0.weight" in weights:
        raise BadRequest(f"{name} is a large MambaIRv2; only lightweight ones (pixelshuffledirect) are supported")
    scales = [key.split(".") for key in weights if key.startswith("layers.") and key.endswith(".scale1")]
    try:
        channels = weights["conv_first.weight"].shape[0]
        return ModelSpec(
            "mambairv2",
            math.isqrt(weights["upsample.0.weight"].shape[0] // 3),
            {
                "channels": channels,
                "blocks": 1 + max(int(parts[1]) for parts in scales),
                "layers": 1 + max(int(parts[4]) for parts in scales),
                "heads": weights[FIRST + "win_mhsa.relative_position_bias_table"].shape[1],
                "window": math.isqrt(weights[WINDOW_INDEX].shape[0]),
                "mlp_ratio": weights[FIRST + "convffn1.fc1.weight"].shape[0] / channels,
                "states": weights[STATES].shape[1],
                "rank": weights[FIRST + "embeddingA.weight"].shape[0],
                "prompts": weights[FIRST + "assm.embeddingB.weight"].shape[0],
            },
        )
    except (KeyError, ValueError) as error:
        raise BadRequest(f"{name} looks like MambaIRv2, but {error} is missing; copy the file again") from None
