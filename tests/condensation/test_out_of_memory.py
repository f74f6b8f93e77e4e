from __future__ import annotations

import pytest
import torch

from idc_ray.condensation.out_of_memory import is_out_of_memory


def test_the_failure_of_a_real_allocation_is_recognised() -> None:
    """Torch's message on CPUs could change: then an image would be blamed for the machine's memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_both_named_kinds_are_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("DefaultCPUAllocator")]
)
def test_other_failures_are_not(error: Exception) -> None:
    """Else a broken image would be tried again and again with fewer images in a call, and never quarantined."""
    assert not is_out_of_memory(error)
