"""CPU time of streamed training data: python benchmarks/stream_cost.py --against CHECKOUT --output FILE.json

Photographs are streamed through Ray Data to one worker, which takes batches and trains nothing. The result is the CPU
time per step of 16 patches, of all processes including Ray's, over whole epochs, so that data read ahead within an
epoch is counted. ``--against`` alternates with another checkout of this repository. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before other imports: the other checkout's side imports the package from there.
sys.path.insert(0, os.environ.get("STREAM_COST_CHECKOUT", str(Path(__file__).resolve().parents[1])))

import ray
import torch
from PIL import Image

from benchmarks.common import ROOT, machine, mosaic, parser, write_result
from idc_ray.config.train import TrainConfig
from idc_ray.training.stream import StreamFeed, stream_of

#: Height and width of a photograph: a cell of the mosaic divides them.
SIZE = 1024, 1536


class Epochs:
    """A worker's part of the stream that records the CPU time at the start of each epoch."""

    def __init__(self, part: Any) -> None:
        self.part = part
        self.begun: list[float] = []
        self.batches = 0

    def iter_torch_batches(self, **arguments: Any) -> Iterator[Any]:
        self.begun.append(cpu_seconds())
        for batch in self.part.iter_torch_batches(**arguments):
            self.batches += len(self.begun) > 1  # the first epoch also starts Ray's processes
            yield batch


def cpu_seconds() -> float:
    """CPU time of this process and all its descendants, including those that have ended."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(map(int, fields[11:15]))  # user and system time, including ended children

    def began(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return sum(ticks[pid] for pid in ticks if began(pid)) / os.sysconf("SC_CLK_TCK")


def side(data: Path, epochs: int) -> float:
    """CPU seconds per step."""
    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", _node_ip_address="127.0.0.1")
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = TrainConfig.model_validate({"data": [str(data)], "model": "edsr_small"})
    part = Epochs(stream_of(config, None).iterator())
    feed = StreamFeed(config, part, torch.device("cpu"))
    take = getattr(feed, "inputs", None) or feed.batch  # the name in checkouts up to 0.1.0
    step = 0
    while len(part.begun) < 2 + epochs:
        take(step, 0, 1)
        step += 1
    del feed, take
    gc.collect()  # ends the current epoch before Ray is shut down
    return (part.begun[1 + epochs] - part.begun[1]) / (part.batches - 1)


def _run(checkout: Path, data: Path, epochs: int) -> float:
    """Run one side in a separate process, in its checkout, as Ray's workers import from the driver's folder."""
    places = {"STREAM_COST_CHECKOUT": str(checkout), "PYTHONPATH": str(checkout), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(Path(__file__).resolve()), "--data", str(data), "--epochs", str(epochs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | places, cwd=checkout)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    picture = Image.fromarray(mosaic(arguments.input, *SIZE))
    for index in range(arguments.images):
        picture.save(scratch / f"{index:03d}.jpg", quality=95)
    sides = {"this": ROOT} | ({"against": arguments.against.resolve()} if arguments.against else {})
    print(f"{arguments.images} photographs of {SIZE[1]} x {SIZE[0]}, {machine()}", flush=True)
    rounds = []
    for _ in range(arguments.rounds):
        row = {name: _run(checkout, scratch, arguments.epochs) for name, checkout in sides.items()}
        rounds.append(row)
        print(", ".join(f"{name}: {seconds:.3f} CPU seconds per step" for name, seconds in row.items()), flush=True)
    figures: dict[str, Any] = {"rounds": rounds}
    if arguments.against:
        figures["times_cheaper"] = statistics.median(row["against"] / row["this"] for row in rounds)
        print(f"factor to the other checkout: {figures['times_cheaper']:.1f}")
    return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout of this repository")
    options.add_argument("--images", type=int, default=64, help="photographs; default 64")
    options.add_argument("--epochs", type=int, default=2, help="timed epochs, after an untimed one; default 2")
    options.add_argument("--rounds", type=int, default=1, help="number of alternating runs of each side; default 1")
    options.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.data is not None:
        print(json.dumps(side(arguments.data, arguments.epochs)))
        return
    if arguments.quick:
        arguments.images, arguments.epochs, arguments.rounds = 4, 1, 1
    with tempfile.TemporaryDirectory() as scratch:
        write_result("stream_cost", arguments, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
