"""Devices, and repeatable results of torch."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
import torch.utils.deterministic

from idc_ray.config import Actors
from idc_ray.errors import BadRequest


def set_up_torch(actors: Actors, has_gpu: bool) -> torch.device:
    """Choose the device and make the results of torch repeatable, see :func:`make_repeatable`.

    Args:
        actors: settings of the workers.
        has_gpu: whether Ray assigned a GPU to this process.

    Raises:
        BadRequest: the device is a GPU, and torch finds no usable one.
    """
    make_repeatable(actors.threads)
    if actors.device == "cuda" or (actors.device == "auto" and has_gpu):
        if not torch.cuda.is_available():
            raise BadRequest(
                f"torch {torch.__version__} finds no usable GPU on a machine where workers are to use one; "
                "install torch for its GPU and driver, set --actors.device cpu, or, on a cluster that has yet to "
                "start machines with a GPU, give --actors.gpus"
            )
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def make_repeatable(threads: int) -> None:
    """Fix what results depend on: the number of threads, cuDNN's choice of algorithms, and TF32.

    Results are then the same on all devices of one kind.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.set_num_threads(threads)
    use_deterministic_algorithms(True)
    # To fill memory that nothing reads costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def use_deterministic_algorithms(mode: bool, warn_only: bool = False) -> None:
    """``torch.use_deterministic_algorithms`` without the import of torch's compiler, which takes a second.

    Where the compiler is imported it is set too. Imported later, it has its default, which is not deterministic:
    condensing compiles nothing, and training asks for no more.
    """
    inductor = sys.modules.get("torch._inductor.config")
    if inductor is not None:
        inductor.deterministic = mode  # type: ignore[attr-defined]
    torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread of torch inside the block, which is faster for small computations on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def device_works(device: torch.device) -> bool:
    """Whether a device still computes; after some errors, a GPU fails until its process ends."""
    try:
        return float(torch.ones(1, device=device).sum()) == 1
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False


def find_device(name: str | torch.device, setting: str = "device") -> torch.device:
    """The device with a name such as ``cuda:1``; ``auto``: the GPU if there is one.

    Raises:
        BadRequest: there is no such device, or it cannot be used; the message names the ``setting``.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadRequest(f"{setting} {name} cannot be used ({str(error).splitlines()[0]}); use cpu or auto") from None
    return device


def device_kind(device: torch.device) -> str:
    """Name of a kind of device; results are byte-identical on devices of one kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def machine(device: torch.device, threads: int) -> str:
    """Kind of this machine, such as ``cpu: AMD EPYC 7B13, 1 of 2 cores``."""
    if device.type == "cuda":
        return device_kind(device)
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"cpu: {model}, {threads} of {os.cpu_count()} cores"
