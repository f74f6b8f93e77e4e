"""Training speed of the student networks in both precisions: python benchmarks/student_models.py --output FILE.json

Steps of the trainer on one random batch, on the GPU if there is one, without reading data. Float32 and bfloat16 take
turns, so that their ratio does not depend on what else the machine does; on a CPU the CPU time is measured.
The operations of a step are those dispatched by torch, except views and allocations: about the number of GPU kernels.
The count of MambaIRv2 is higher on a CPU than on a GPU, as its selective scans have shorter segments there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import parser, write_result
from idc_ray.config.loading import load
from idc_ray.config.train import TrainConfig
from idc_ray.models import create_model
from idc_ray.training.loop import Trainer

STUDENTS = ("edsr_small", "edsr_baseline", "swinir_light", "mambairv2_light")

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
    out.add_argument("--threads", type=int, default=1, help="torch threads, on a CPU (default 1)")
    return out.parse_args()


def measure(name: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Median seconds of a step in each precision, and operations of a float32 step."""
    torch.manual_seed(0)
    side, scale = arguments.patch, arguments.scale
    batch = [torch.rand(arguments.batch, 3, k * side, k * side, device=device) for k in (1, scale)]
    trainers = {}
    for precision in ("float32", "bfloat16"):
        config = load(TrainConfig, None, {"model": name, "scale": scale, "precision": precision, "iterations": 10**6})
        model = create_model(name, scale).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainers[precision] = Trainer(model, config)
    seconds: dict[str, list[float]] = {precision: [] for precision in trainers}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(2 + arguments.steps):  # the first two are a warm-up
        for precision, trainer in trainers.items():
            begin = clock()
            trainer.advance(*batch)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[precision].append(clock() - begin)
    with Operations() as operations:
        trainers["float32"]._step(*batch)
    medians = {precision: statistics.median(values[2:]) for precision, values in seconds.items()}
    return {**medians, "operations": operations.count}


def main() -> None:
    arguments = _arguments()
    if arguments.quick:
        arguments.batch, arguments.patch, arguments.steps = 1, 16, 2
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"{arguments.batch} patches of {arguments.patch} x {arguments.patch}, {kind}; milliseconds per step")
    networks = {}
    for name in arguments.models:
        networks[name] = found = measure(name, arguments, device)
        slow, fast = 1e3 * found["float32"], 1e3 * found["bfloat16"]
        print(
            f"{name:16} float32 {slow:8.1f}  bfloat16 {fast:8.1f}  factor {slow / fast:.2f}  "
            f"{found['operations']:6.0f} operations"
        )
    write_result("student_models", arguments, {"device": kind, "networks": networks})


if __name__ == "__main__":
    main()
