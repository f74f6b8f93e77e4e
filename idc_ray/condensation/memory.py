"""Telling too little memory from all other failures."""

from __future__ import annotations

import torch

__all__ = ["is_out_of_memory"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device or this machine had too little memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On CPUs torch has no exception type for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
