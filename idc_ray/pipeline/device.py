"""One way to set torch up, wherever images are condensed."""

from __future__ import annotations

import os

import torch

from idc_ray.config import Actors

__all__ = ["device_kind", "set_up_torch"]


def set_up_torch(actors: Actors, has_gpu: bool) -> torch.device:
    """Choose the device and make torch's results repeatable on it.

    Float results depend on the number of threads, on the algorithm that cuDNN finds fastest and on TF32,
    so all of them are fixed; the result is then the same on every device of one kind.

    Args:
        actors: settings of the workers.
        has_gpu: whether this process was given a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.set_num_threads(actors.threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if actors.device == "cuda" or (actors.device == "auto" and has_gpu):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def device_kind(device: torch.device) -> str:
    """Name for records: results are the same bytes on devices of one kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
