"""Torch's global settings for training."""

from __future__ import annotations

import os

import torch

from idc_ray.pipeline.device import use_deterministic_algorithms


def set_up_training(threads: int) -> None:
    """Set torch's global flags for a training process.

    cuDNN uses deterministic algorithms, chosen by its heuristics, so that a training continued by another process
    should give the same bits (benchmarks/gpu.py checks this). Other operations may be non-deterministic. TF32 is
    allowed for convolutions, which is torch's default.

    Args:
        threads: number of torch's threads, at least 1; float sums depend on it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is initialised
    use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(threads)
