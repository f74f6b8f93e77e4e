"""The training job with one worker compared with a torch loop: python benchmarks/train_throughput.py --output FILE.json

The same condensed tiles in memory, network, batch, loss, precision and torch threads. The loop is minimal: random
tiles, forward, backward, Adam, on a GPU as a CUDA graph; no flips, moving average, clipping or checkpoints. The job has
all defaults: Ray Train, progress, tracking, checkpoints. The sides run alternately in separate processes; the same
number of steps is timed, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.common import ROOT, machine, parser, write_pieces, write_result
from idc_ray.config.train import TrainConfig
from idc_ray.dataset import CondensedDataset
from idc_ray.models import create_model
from idc_ray.training.device import set_up_training
from idc_ray.training.low_precision import choose_precision

#: Goal: smallest ratio of the job's steps/s to the loop's.
GOAL = 0.95

#: Untimed steps at the start: caches, first allocations, start of Ray.
WARM_STEPS = 40

#: Pieces of photographs that tiles are cut from.
PIECES = 40


def settings(data: Path, output: Path, arguments: argparse.Namespace) -> TrainConfig:
    steps = WARM_STEPS + arguments.steps
    values = {"model": arguments.model, "data": [str(data)], "output": str(output), "iterations": steps}
    return TrainConfig.model_validate(values | {"workers": {"threads": arguments.threads}})


def loop(config: TrainConfig) -> float:
    """Steps/s of a good hand-written loop, with a CUDA graph on a GPU."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low = choose_precision(config.precision, device, config.model) == "bfloat16"
    set_up_training(config.workers.threads or 1)
    tiles = CondensedDataset(config.data[0])
    lr, hr = (torch.stack([tiles[i][part] for i in range(len(tiles))]).to(device) for part in (0, 1))
    model = create_model(config.model, scale=config.scale).to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gpu = device.type == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.learning_rate, fused=gpu, capturable=gpu)

    def step(index: torch.Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            output = model(lr[index].float() / 255)
        (output.float() - hr[index].float() / 255).abs().mean().backward()
        optimizer.step()

    static = torch.randint(len(lr), (config.batch_size,), device=device)
    run = _captured(step, static) if gpu else step
    begin = 0.0
    for number in range(config.iterations):
        if number == WARM_STEPS:
            float(next(model.parameters()).detach().sum())  # waits for the device
            begin = time.perf_counter()
        static.random_(len(lr))
        run(static)
    float(next(model.parameters()).detach().sum())
    return (config.iterations - WARM_STEPS) / (time.perf_counter() - begin)


def _captured(step: Callable[[torch.Tensor], None], index: torch.Tensor) -> Callable[[torch.Tensor], None]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            step(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(index)
    return lambda _: graph.replay()


def job(config: TrainConfig) -> float:
    """Steps/s of the job, from the times at which the driver receives progress."""
    from idc_ray.training import driver
    from idc_ray.training.progress import TrainProgress

    heard: list[tuple[int, float]] = []

    class Timed(TrainProgress):
        def update(self, event: Mapping[str, Any]) -> None:
            if event["kind"] == "progress":
                heard.append((event["step"], time.perf_counter()))
            super().update(event)

    with mock.patch.object(driver, "TrainProgress", Timed):
        driver.train(config)
    first = next(each for each in heard if each[0] >= WARM_STEPS)
    (step, begin), (last, end) = first, heard[-1]
    return (last - step) / (end - begin)


SIDES = {"job": job, "loop": loop}


def _rate(side: str, data: Path, output: Path, arguments: argparse.Namespace) -> float:
    """Run one side in a separate process."""
    options = ["--side", side, "--tiles", str(data), "--side-output", str(output), "--model", arguments.model]
    options += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
    done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    pieces = write_pieces(arguments.input, scratch / "pieces", PIECES)
    condense = [sys.executable, str(ROOT / "jobs" / "condense.py"), "--input", str(pieces), "--method", "random"]
    condense += ["--ratio", "0.5", "--output", str(scratch / "tiles"), "--mlflow.enabled", "false"]
    subprocess.run(condense, check=True, capture_output=True)
    print(f"{arguments.model}, {arguments.steps} steps, {arguments.rounds} rounds, {machine()}", flush=True)
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        row = {side: _rate(side, scratch / "tiles", scratch / f"{side}{number}", arguments) for side in SIDES}
        row["job_over_loop"] = row["job"] / row["loop"]
        rounds.append(row)
        print(f"loop {row['loop']:.2f}, job {row['job']:.2f} steps/s: {row['job_over_loop']:.3f}", flush=True)
    over = statistics.median(row["job_over_loop"] for row in rounds)
    print(f"job / loop: {over:.3f} (goal: at least {GOAL:.2f})")
    return {"rounds": rounds, "job_over_loop": over, "goal": GOAL}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="edsr_small", help="network; default edsr_small")
    options.add_argument("--steps", type=int, default=300, help="timed steps; default 300")
    options.add_argument("--threads", type=int, default=1, help="torch threads of both sides; default 1")
    options.add_argument("--rounds", type=int, default=3, help="number of alternating runs of both sides; default 3")
    options.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options.add_argument("--tiles", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--side-output", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.quick:
        arguments.steps, arguments.rounds = 40, 1
    if arguments.side:
        config = settings(arguments.tiles, arguments.side_output, arguments)
        print(json.dumps(SIDES[arguments.side](config)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_result("train_throughput", arguments, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
