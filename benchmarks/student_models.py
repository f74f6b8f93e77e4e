"""Training speed of the student networks: python benchmarks/student_models.py --output FILE.json

Forward and backward pass of each network on one random batch, on the GPU if there is one, without data and optimizer.
The operations of a step are those dispatched by torch, except views and allocations: about the number of GPU kernels.
The count of MambaIRv2 is higher on a CPU than on a GPU, as its selective scans have shorter segments there.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import parser, write_result
from idc_ray.models import create_model

STUDENTS = ("edsr_baseline", "swinir_light", "mambairv2_light")

#: Operations without a kernel: views and allocations.
NO_KERNEL = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "split_with_sizes", "squeeze"),
    *("t", "transpose", "unbind", "unfold", "unsqueeze", "view", "_unsafe_view", "promote_types"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
}


class Operations(TorchDispatchMode):
    """Counts the operations with a kernel."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name().removeprefix("aten::").split(".")[0] not in NO_KERNEL
        return func(*args, **(kwargs or {}))


def _arguments() -> argparse.Namespace:
    out = parser(__doc__)
    out.add_argument("--models", nargs="+", default=STUDENTS, choices=STUDENTS, help="default: all")
    out.add_argument("--batch", type=int, default=16, help="patches in a batch (default 16)")
    out.add_argument("--patch", type=int, default=48, help="side of the low-resolution patches (default 48)")
    out.add_argument("--scale", type=int, default=2, help="2, 3 or 4 (default 2)")
    out.add_argument("--steps", type=int, default=10, help="timed steps of each network (default 10)")
    out.add_argument("--bfloat16", action="store_true", help="autocast, as the training job does on a GPU")
    out.add_argument("--threads", type=int, default=1, help="torch threads, on a CPU (default 1)")
    return out.parse_args()


def step(model: nn.Module, x: Tensor, bfloat16: bool) -> None:
    model.zero_grad(set_to_none=True)
    with torch.autocast(x.device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
        y = model(x)
    y.float().abs().mean().backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest and the median step, and operations of a step."""
    torch.manual_seed(0)
    model = create_model(name, arguments.scale).train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(arguments.batch, 3, arguments.patch, arguments.patch, device=device)
    seconds = []
    for _ in range(2 + arguments.steps):  # the first two are a warm-up
        begin = time.perf_counter()
        step(model, x, arguments.bfloat16)
        seconds.append(time.perf_counter() - begin)
    with Operations() as operations:
        step(model, x, arguments.bfloat16)
    timed = seconds[2:]
    return {"fastest": min(timed), "median": statistics.median(timed), "operations": operations.count}


def main() -> None:
    arguments = _arguments()
    if arguments.quick:
        arguments.batch, arguments.patch, arguments.steps = 1, 16, 2
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"{arguments.batch} patches of {arguments.patch} x {arguments.patch}, {kind}")
    networks = {}
    for name in arguments.models:
        networks[name] = found = measure(name, arguments, device)
        print(f"{name:16} {1 / found['median']:8.3f} steps/s  {found['operations']:6d} operations per step")
    write_result("student_models", arguments, {"device": kind, "networks": networks})


if __name__ == "__main__":
    main()
