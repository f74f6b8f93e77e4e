"""Throughput of a GPU: python benchmarks/gpu.py --output FILE.json [--teacher CHECKPOINT]

Takes at most ``--minutes`` (default 9), without Ray, most important measurements first. The JSON is rewritten after
each measurement, so that an interruption loses nothing. Without a GPU each measurement runs once on the CPU as a smoke
test.

- whether captured steps give the same training as eager ones, and can be continued bit-identically;
- steps/s of the three students, eager, captured as a CUDA graph and compiled, one and several at a time, and their
  share of the GPU's rate for large bfloat16 matrix products;
- the same with online labels;
- tiles/s and megapixels/s of the teachers as labelers;
- images/s of condensing 2-megapixel photographs at x2 and x4, with the stages' shares, and how often the host waits for
  the GPU for one of them; without a GPU on a simulated one.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import machine, mosaic, parser, write_result
from benchmarks.simulated_gpu import SIMULATED, simulated_gpu
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import ImageTask
from idc_ray.condensation.teacher_features import upscale_tiles
from idc_ray.config import CondenseConfig, load
from idc_ray.config.train import TrainConfig
from idc_ray.images.resize import downscale
from idc_ray.models import Upscaler, bundled_teacher_bytes, load_upscaler
from idc_ray.pipeline.device import set_up_torch
from idc_ray.training.augment import AugmentedFeed
from idc_ray.training.device import set_up_training
from idc_ray.training.fit import student_spec
from idc_ray.training.loop import Trainer
from idc_ray.training.low_precision import choose_precision
from idc_ray.training.pairs import Feed, Pair, PairTable, Patches

Row = dict[str, Any]

#: Untimed steps at the start.
WARM_UP = 8

#: Batch and patch size of the goals in benchmarks/README.md.
BATCH, PATCH = 16, 48

#: HR size of a photograph of 2.7 megapixels, as in DIV2K; multiples of the mosaic's cells.
PHOTOGRAPH = (1280, 2048)

#: Images of one call of the condenser.
TOGETHER = 8

#: Execution of each student, and how many of it at a time; the most important first.
PLAN = {
    "edsr_baseline": [("graph", 1), ("graph", 4), ("eager", 1), ("graph", 2), ("graph", 8)],
    "swinir_light": [("graph", 1), ("eager", 1), ("graph", 4)],
    "mambairv2_light": [("graph", 1), ("eager", 1), ("graph", 4)],
}

AUGMENT = {"cutmix": 0.4, "mixup": 0.3, "channels": 0.5, "contrast": 0.3}


class Bench:
    """Device and duration of the measurements."""

    def __init__(self, device: torch.device, seconds: float, small: bool) -> None:
        self.device, self.seconds, self.small = device, seconds, small
        self.peak = math.nan

    def sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def rate(self, call: Callable[[], object], warm_up: int = WARM_UP) -> float:
        """Calls per second."""
        for _ in range(1 if self.small else warm_up):
            call()
        self.sync()
        begin, calls = time.perf_counter(), 0
        while calls < 2 or time.perf_counter() - begin < self.seconds:
            for _ in range(1 if self.small else 10):
                call()
                calls += 1
            if self.small:
                break
            if calls % 100 == 0:
                self.sync()  # bounds the queue of launched work
        self.sync()
        return calls / (time.perf_counter() - begin)


def student(model: str, execution: str, bench: Bench, scale: int = 2) -> TrainConfig:
    settings = {"model": model, "scale": scale, "execution": execution, "batch_size": BATCH, "patch_size": PATCH,
                "iterations": 10**6}  # fmt: skip
    if bench.small:
        settings |= {"batch_size": 2, "patch_size": 16}
    return load(TrainConfig, None, settings)


def trainers(
    config: TrainConfig, count: int, bench: Bench, table: PairTable, labeler: Upscaler | None = None
) -> Callable[[], None]:
    """A function that launches one step of each of ``count`` students, each on a separate CUDA stream."""
    made = []
    for seed in range(count):
        feed: Feed = Patches(table, config.patch_size, config.batch_size, seed)
        if labeler is not None:
            precision = choose_precision(config.precision, bench.device, config.model)
            low = torch.bfloat16 if precision == "bfloat16" else None
            augment = load(TrainConfig, None, {"augment": AUGMENT}).augment
            feed = AugmentedFeed(feed, augment, seed, config.patch_size, config.batch_size, labeler, low)
        model = student_spec(config).build().to(bench.device)
        trainer = Trainer(model.to(memory_format=torch.channels_last), config, patches=feed.patches)  # type: ignore[call-overload]
        stream = torch.cuda.Stream() if bench.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        made.append((trainer, feed, stream))
    bench.sync()

    def step() -> None:
        for trainer, feed, stream in made:
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                trainer.advance(*feed.inputs(trainer.step, 0, 1))

    return step


def matrix_rate(bench: Bench) -> float:
    """FLOP/s of a large bfloat16 matrix product on random data."""
    side = 256 if bench.small else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * side**3 * bench.rate(lambda: a @ b)


def step_flops(config: TrainConfig, bench: Bench) -> float:
    """FLOP of the convolutions and matrix products in one step, counted by torch."""
    model = student_spec(config).build().to(bench.device)
    lr = torch.rand(config.batch_size, 3, config.patch_size, config.patch_size, device=bench.device)
    with FlopCounterMode(display=False) as counter:
        model(lr).sum().backward()
    return float(counter.get_total_flops())


def random_table(bench: Bench, scale: int) -> PairTable:
    random = np.random.default_rng(0)
    side = 64 if bench.small else 480
    pairs = [
        Pair(str(i), *[random.integers(0, 256, (f * side, f * side, 3), dtype=np.uint8) for f in (1, scale)])
        for i in range(8)
    ]
    return PairTable.build(pairs, scale).to(bench.device)


def check_row(bench: Bench, name: str, precision: str) -> Row:
    """Check that a captured training equals an eager one, and can be continued bit-identically.

    The rate is the largest difference of the averaged weights after 30 steps, divided by their largest change.
    """
    set_up_training(torch.get_num_threads())
    table = random_table(bench, 2)
    steps, stop = (4, 2) if bench.small else (30, 11)

    def trained(execution: str, breaks: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        settings = {"execution": execution, "precision": precision, "iterations": steps}
        config = student(name, execution, bench).model_copy(update=settings)
        feed = Patches(table, config.patch_size, config.batch_size, 0)

        def begin() -> Trainer:
            torch.manual_seed(0)
            model = student_spec(config).build().to(bench.device, memory_format=torch.channels_last)
            return Trainer(model, config, patches=feed.patches)

        trainer = begin()
        first = {key: value.clone() for key, value in trainer.state().items()}
        while trainer.step < steps:
            if breaks and trainer.step == stop:
                saved = {key: value.clone() for key, value in trainer.state().items()}
                trainer = begin()
                trainer.restore(saved, stop)
            trainer.advance(*feed.inputs(trainer.step))
        return first, {key: value.clone() for key, value in trainer.state().items()}

    (first, eager), (_, graph), (_, resumed) = trained("eager"), trained("graph"), trained("graph", breaks=True)
    names = [key for key in eager if key.startswith("average.") and eager[key].is_floating_point()]
    change = max(float((eager[key] - first[key]).abs().max()) for key in names)
    difference = max(float((eager[key] - graph[key]).abs().max()) for key in names) / change
    same = all(torch.equal(graph[key], resumed[key]) for key in graph)
    return {
        "what": f"{name} {precision}, graph and eager: largest difference / largest change",
        "rate": difference,
        "unit": "" if same else "NOT BIT-IDENTICAL WHEN CONTINUED",
        "resumes_bit_by_bit": same,
    }


def peak_row(bench: Bench) -> Row:
    bench.peak = matrix_rate(bench)
    return {"what": "bfloat16 matrix product", "rate": bench.peak / 1e12, "unit": "TFLOP/s"}


def student_row(
    bench: Bench, name: str, execution: str, count: int, scale: int = 2, labeler: Callable[[], Upscaler] | None = None
) -> Row:
    """Steps/s of ``count`` students together, and their share of the peak (without the labeler's operations)."""
    set_up_training(torch.get_num_threads())
    config = student(name, execution, bench, scale)
    network = None if labeler is None else labeler()
    rate = count * bench.rate(trainers(config, count, bench, random_table(bench, scale), network))
    by = "" if network is None else f", labels online by {network.name}"
    row: Row = {"what": f"{name} x{scale}, {execution}, {count} at a time{by}", "rate": rate, "unit": "steps/s"}
    return row | {"share": rate * step_flops(config, bench) / bench.peak}


def benchmarked_row(bench: Bench) -> Row:
    """Steps/s with cudnn.benchmark, which is not deterministic, to measure the cost of determinism."""
    set_up_training(torch.get_num_threads())
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    step = trainers(student("edsr_baseline", "graph", bench), 1, bench, random_table(bench, 2))
    return {"what": "edsr_baseline x2, graph, cudnn.benchmark", "rate": bench.rate(step), "unit": "steps/s"}


def label_row(
    bench: Bench, load_network: Callable[[], Upscaler], dtype: torch.dtype | None, sides: Sequence[int]
) -> Row:
    """LR megapixels/s of a labeler, with a batch of shape ``sides``."""
    set_up_training(torch.get_num_threads())
    network, batch = load_network(), torch.rand(*sides, device=bench.device)
    with torch.no_grad():
        rate = bench.rate(partial(upscale_tiles, network, batch, dtype), 2) * batch[:, 0].numel() / 1e6
    shape = " x ".join(map(str, sides))
    return {"what": f"labels of {network.name}, {dtype or 'float32'}, {shape}", "rate": rate, "unit": "LR megapixels/s"}


def condenser_of(bench: Bench, scale: int) -> Condenser:
    """The condense job's condenser on the GPU; without one, on a simulated one."""
    config = load(CondenseConfig, None, {"scale": scale})
    gpu = bench.device.type == "cuda"
    device = set_up_torch(config.actors, has_gpu=gpu)
    return load_condenser(config, bundled_teacher_bytes(scale), device if gpu else SIMULATED)


def photograph(bench: Bench, source: Path | None, scale: int) -> NDArray[np.uint8]:
    """An LR image."""
    height, width = (256, 256) if bench.small else PHOTOGRAPH
    return downscale(mosaic(source, height, width), scale)


def condense(condenser: Condenser, lr: NDArray[np.uint8], count: int) -> dict[str, float]:
    """Seconds of each stage for ``count`` images in one call."""
    stages = dict[str, float]()
    for result in condenser.condense([ImageTask(f"image {index}", lr) for index in range(count)]):
        if isinstance(result, Exception):
            raise result
        for stage, seconds in result.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    return stages


def condense_row(bench: Bench, source: Path | None, scale: int) -> Row:
    """Images/s of the condense job's condenser, ``TOGETHER`` images per call, and each stage's share of their time.

    On a GPU images overlap, so a stage's time includes waiting for others.
    """
    lr, count, stages = photograph(bench, source, scale), 0, dict[str, float]()
    with simulated_gpu() if bench.device.type == "cpu" else nullcontext():
        condenser = condenser_of(bench, scale)
        condense(condenser, lr, 1)
        bench.sync()
        begin = time.perf_counter()
        while count < 1 or (time.perf_counter() - begin < bench.seconds and not bench.small):
            together = 1 if bench.small else TOGETHER
            for stage, seconds in condense(condenser, lr, together).items():
                stages[stage] = stages.get(stage, 0.0) + seconds
            count += together
        bench.sync()
        rate = count / (time.perf_counter() - begin)
    shares = {stage: round(seconds / sum(stages.values()), 3) for stage, seconds in stages.items()}
    what = f"condensing {lr.shape[1] * scale} x {lr.shape[0] * scale} at x{scale}"
    return {"what": what, "rate": rate, "unit": "images/s", "stages": shares}


def waits_row(bench: Bench, source: Path | None, scale: int) -> Row:
    """How often the host waits for the GPU in condensing an image, by torch's debug mode or on a simulated GPU."""
    lr, what = photograph(bench, source, scale), f"waits of the host for one image at x{scale}"
    if bench.device.type == "cpu":
        with simulated_gpu() as counts:
            condenser = condenser_of(bench, scale)
            condense(condenser, lr, 1)
            counts.reset()
            condense(condenser, lr, 1)
        return {"what": what, "rate": counts.waits.total(), "unit": "", "launches": counts.launches}
    condenser = condenser_of(bench, scale)
    condense(condenser, lr, 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            condense(condenser, lr, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"what": what, "rate": sum("synchroniz" in str(each.message) for each in caught), "unit": ""}


def measurements(bench: Bench, source: Path | None, teacher: Path | None) -> Iterator[Callable[[], Row]]:
    """All measurements, the most important first; on a CPU each kind once."""
    yield partial(peak_row, bench)
    for precision in ("float32", "bfloat16"):
        for name in PLAN:
            yield partial(check_row, bench, name, precision)
    labelers = [partial(load_upscaler, bundled_teacher_bytes(2), scale=2, device=bench.device, name="bundled")]
    if teacher is not None:
        labelers.insert(0, partial(load_upscaler, teacher, scale=2, device=bench.device))
    for name, runs in PLAN.items():
        for execution, count in runs[: 1 if bench.small else None]:
            yield partial(student_row, bench, name, execution, count)
    for labeler in labelers:
        for count in (4, 1):
            yield partial(student_row, bench, "edsr_baseline", "graph", count, labeler=labeler)
    for scale in (2, 4):
        yield partial(condense_row, bench, source, scale)
        yield partial(waits_row, bench, source, scale)
    yield partial(student_row, bench, "edsr_baseline", "graph", 4, 4)
    tiles, image = (4 if bench.small else 64, 3, PATCH, PATCH), (1, 3, *((64, 64) if bench.small else (640, 1024)))
    for labeler in labelers:
        for dtype in (None, torch.bfloat16):
            for sides in (tiles, image):
                yield partial(label_row, bench, labeler, dtype, sides)
    yield partial(benchmarked_row, bench)
    for count in (1, 4):  # last: compiling takes a minute
        yield partial(student_row, bench, "edsr_baseline", "compiled", count)


def measure(arguments: argparse.Namespace) -> list[Row]:
    gpu = torch.cuda.is_available()
    if not gpu:
        print("torch finds no usable GPU; each measurement runs once on the CPU as a smoke test")
    small = arguments.quick or not gpu
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    bench = Bench(device, 0.2 if small else arguments.seconds, small)
    deadline = time.monotonic() + 60 * arguments.minutes
    card = torch.cuda.get_device_name(device) if gpu else machine()["cpu"]
    rows: list[Row] = []
    for measurement in measurements(bench, arguments.input, arguments.teacher):
        if time.monotonic() > deadline:
            print("the time is over; the rest was not measured")
            break
        try:
            row = measurement()
            share = f"  {row['share']:6.1%} of the peak" if "share" in row else ""
            stages = f"  {row['stages']}" if "stages" in row else ""
            print(f"{row['what']:72} {row['rate']:10.4g} {row['unit']}{share}{stages}", flush=True)
        except Exception as error:  # a failure on one GPU must not lose the other figures
            if small:
                raise
            row = {"what": f"failed: {type(error).__name__}: {error}"}
            print(row["what"], flush=True)
        rows.append(row)
        write_result("gpu", arguments, {"card": card, "figures_mean_something": not small, "rows": rows})
    return rows


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--teacher", type=Path, metavar="FILE", help="a large teacher for x2")
    options.add_argument("--minutes", type=float, default=9.0, help="time limit (default: 9)")
    options.add_argument("--seconds", type=float, default=3.0, help="seconds per measurement (default: 3)")
    arguments = options.parse_args()
    if arguments.output is None:
        print("give --output FILE.json to save the figures")
    measure(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
