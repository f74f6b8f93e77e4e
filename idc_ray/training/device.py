"""One way to set torch up, wherever networks are trained."""

from __future__ import annotations

import os

import torch

from idc_ray.pipeline.device import use_deterministic_algorithms

__all__ = ["set_up_training"]


def set_up_training(threads: int) -> None:
    """Set torch's global switches for a process that trains, whatever ran in it before.

    cuDNN's deterministic algorithms, chosen by its heuristics: a training that another process continues should then
    have the same bits, which benchmarks/gpu.py checks. Other operations may choose theirs freely; TF32 is as torch has
    it by default.

    Args:
        threads: of torch, at least 1; float sums depend on it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(threads)
