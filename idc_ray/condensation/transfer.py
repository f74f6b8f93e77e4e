"""Copies between the host and a device. The host waits for a GPU only where a copy comes back."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, for which the host does not wait: a GPU reads it from pinned memory, in its turn."""
    if device.type == "cuda":
        values = values.pin_memory()  # torch keeps the memory until the copy is done
    return values.to(device, non_blocking=True)


def to_host(*values: Tensor) -> list[Tensor]:
    """Copies on the CPU of tensors on one device: one transfer, for which the host waits once."""
    if values[0].device.type == "cpu":
        return list(values)
    parts = [part.contiguous().view(-1).view(torch.uint8) for part in values]
    copied = torch.cat(parts).cpu().split([len(part) for part in parts])
    # Cloned: a value has to lie at a multiple of its size.
    return [part.clone().view(of.dtype).view(of.shape) for part, of in zip(copied, values, strict=True)]
