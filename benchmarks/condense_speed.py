"""Speed-up over two literal implementations of the paper: python benchmarks/condense_speed.py --output FILE.json

One image (a 2K mosaic), the same teacher, loss, steps, frequencies per step and threads, in one process. idc_ray is
timed for the whole run with defaults: difficulty, targets, start, all steps, labels. All literal steps cost the same,
so a few are measured, half before and half after idc_ray, and multiplied. The literal set-up, which computes the real
image's features once, is measured with idc_ray's code and added. Labels and weight refreshes are left out for the
literal implementations.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import machine, mosaic, parser, write_result
from benchmarks.literal import PROJECTIONS, LiteralImage, LiteralMatcher
from idc_ray.condensation.budget import expected_tiles
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.crops import Crops
from idc_ray.condensation.difficulty import hardness_map
from idc_ray.condensation.groups import balanced_groups
from idc_ray.condensation.rlff import draw_bank
from idc_ray.condensation.starts import crop_start, hardest_windows
from idc_ray.condensation.targets import measure_image
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import CondenseConfig
from idc_ray.images.resize import downscale
from idc_ray.models import Teacher, bundled_teacher_bytes, load_teacher
from idc_ray.pipeline.device import set_up_torch

#: Goals for the speed-up over the literal implementation by convolution, by ratio.
GOALS = {0.1: 4.0, 0.02: 15.0}


@dataclass
class Clock:
    """Adds up wall seconds, and CPU seconds, which other load on the machine affects less."""

    wall: float = 0.0
    cpu: float = 0.0
    runs: int = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu
            self.runs += 1


def _task(arguments: argparse.Namespace) -> ImageTask:
    height, width = (768, 1024) if arguments.quick else (1536, 2048)
    return ImageTask("mosaic", downscale(mosaic(arguments.input, height, width), 2))


class Literals:
    """Literal optimisations of one image that advance step by step."""

    def __init__(self, teacher: Teacher, config: CondenseConfig, task: ImageTask) -> None:
        self.clocks = {name: Clock() for name in PROJECTIONS}
        self.set_up = Clock()
        with self.set_up.running():
            image, start = _literal_image(teacher, config, task)
        condenser = Condenser(teacher, config, torch.device("cpu"))
        self._steps = {
            name: LiteralMatcher(
                condenser.reader, project, config.loss, config.optimizer, condenser.batches.size
            ).steps(image, start, config.iterations, lambda step: _redraw(config, teacher.channels, step))
            for name, project in PROJECTIONS.items()
        }
        for steps in self._steps.values():  # the first one warms up, and computes the weights
            next(steps)

    def advance(self) -> None:
        for name, steps in self._steps.items():
            with self.clocks[name].running():
                next(steps)


def _redraw(config: CondenseConfig, channels: int, step: int) -> Tensor:
    rlff = config.rlff
    few = len(rlff.bandwidths)
    bank = draw_bank(step, channels, rlff.kernel_size, rlff.bandwidths, 1, rlff.num_frequencies, few)
    return bank.sets[0]


def _literal_image(teacher: Teacher, config: CondenseConfig, task: ImageTask) -> tuple[LiteralImage, Tensor]:
    """The real image's features and the initial tiles, with frequencies only for the groups and one held-out loss."""
    one_set = config.model_copy(update={"rlff": config.rlff.model_copy(update={"num_sets": 1})})
    condenser = Condenser(teacher, one_set, torch.device("cpu"))
    reader, loss = condenser.reader, config.loss
    lr = torch.from_numpy(np.ascontiguousarray(task.lr.transpose(2, 0, 1)))
    crops = Crops(reader, lr, condenser.batches)
    difficulties = crops.difficulties()
    hardness = hardness_map(loss.hardness, difficulties[None], lr[None].float() / 255)[0]
    weighting = crops.weighting(hardness, loss.gamma, loss.weight_floor, loss.clip_percentile)
    real, _ = measure_image(crops, condenser.bank, hardness, weighting)
    count = round(expected_tiles(config.ratio, *task.lr.shape[:2], config.tile_size))
    start, _ = crop_start(lr, hardest_windows(difficulties, config.tile_size, count), config.tile_size)
    points = real.embeddings(config.rlff.num_frequencies)
    shares = balanced_groups(points, real.weight_sums, points[:count])
    image = LiteralImage.cut_from(reader, lr, hardness, shares, real.mean, real.std, real.weighting)
    return replace(image, weighting=real.weighting.of_tiles(loss.tile_weights)), start


def measure(teacher: Teacher, config: CondenseConfig, task: ImageTask, literal_steps: int) -> dict[str, object]:
    """Time a whole run of idc_ray, between two halves of the steps of the literal implementations."""
    literals = Literals(teacher, config, task)
    condenser = Condenser(teacher, config, torch.device("cpu"))
    idc = Clock()
    for _ in range(literal_steps // 2):
        literals.advance()
    with idc.running():
        result = condenser.condense([task])[0]
    for _ in range(literal_steps - literal_steps // 2):
        literals.advance()
    if not isinstance(result, Condensed):
        raise result
    assert result.loss_start is not None and result.loss_end is not None
    figures: dict[str, object] = {
        "ratio": config.ratio,
        "tiles": len(result.lr_tiles),
        "candidates": result.candidates,
        "iterations": config.iterations,
        "held_out_loss": [result.loss_start, result.loss_end],
        "idc": {"wall": idc.wall, "cpu": idc.cpu, "set_up_wall": result.seconds["targets"]},
        "literal_set_up": {"wall": literals.set_up.wall, "cpu": literals.set_up.cpu},
        "goal": GOALS.get(config.ratio),
    }
    for name, clock in literals.clocks.items():
        whole = {
            kind: getattr(literals.set_up, kind) + config.iterations * getattr(clock, kind) / clock.runs
            for kind in ("wall", "cpu")
        }
        times_faster = {kind: seconds / getattr(idc, kind) for kind, seconds in whole.items()}
        figures[name] = {"measured": asdict(clock), "whole": whole, "times_faster": times_faster}
    return figures


def _print(rows: list[dict[str, object]]) -> None:
    print(f"{'ratio':>6} {'tiles':>6} {'idc':>9} {'set-up':>8}  {'implementation':<14}{'a step':>8} {'whole':>9}"
          f" {'faster':>8} {'(CPU time)':>10}  goal")  # fmt: skip
    for row in rows:
        idc: dict[str, float] = row["idc"]  # type: ignore[assignment]
        for name in PROJECTIONS:
            figures: dict[str, dict[str, float]] = row[name]  # type: ignore[assignment]
            step = figures["measured"]["wall"] / figures["measured"]["runs"]
            goal = f"{row['goal']:g}x" if row["goal"] and name == "convolution" else ""
            print(f"{row['ratio']:>6} {row['tiles']:>6} {idc['wall']:>8.1f}s {idc['set_up_wall']:>7.1f}s  {name:<14}"
                  f"{step:>7.2f}s {figures['whole']['wall']:>8.0f}s {figures['times_faster']['wall']:>7.1f}x"
                  f" {figures['times_faster']['cpu']:>9.1f}x  {goal}")  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ratio", type=float, nargs="+", default=list(GOALS), help="default: 0.1 0.02")
    options.add_argument("--iterations", type=int, default=CondenseConfig().iterations, help="default: the job's")
    options.add_argument("--literal-steps", type=int, default=4, help="measured steps of each literal implementation")
    options.add_argument("--threads", type=int, default=1, help="torch threads of all implementations")
    options.add_argument("--teacher", type=Path, metavar="FILE", help="a checkpoint for x2; default: the bundled one")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.iterations, arguments.literal_steps = min(arguments.iterations, 10), 1
    config = CondenseConfig.model_validate(
        {
            "iterations": arguments.iterations,
            "matching": "pixels",
            "actors": {"threads": arguments.threads, "device": "cpu"},
        }
    )
    set_up_torch(config.actors, has_gpu=False)
    teacher = load_teacher(arguments.teacher or bundled_teacher_bytes(2), scale=2, name="the teacher")
    task = _task(arguments)
    print(f"LR image {task.lr.shape[1]} x {task.lr.shape[0]}, {config.rlff.num_frequencies} frequencies per step, "
          f"all {config.iterations} steps of idc_ray, {arguments.literal_steps} steps of each literal implementation "
          f"times {config.iterations}/{arguments.literal_steps}, {machine()}")  # fmt: skip
    rows = []
    for ratio in arguments.ratio:
        steps = min(arguments.literal_steps, config.iterations - 1)
        rows.append(measure(teacher, config.model_copy(update={"ratio": ratio}), task, steps))
        _print(rows[-1:])
    write_result("condense_speed", arguments, {"rows": rows})


if __name__ == "__main__":
    main()
