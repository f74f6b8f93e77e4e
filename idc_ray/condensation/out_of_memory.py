"""Detection of out-of-memory errors."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is an out-of-memory error of a device or this machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On CPUs torch has no exception type for it.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
