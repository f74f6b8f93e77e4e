"""A sweep compared with the same trials in a plain loop: python benchmarks/tune_overhead.py --output FILE.json

The sweep is the tuning job, one trial at a time: random search without early stopping, records, tracking, plots. The
loop is one process without Ray that condenses the same images with the sweep's settings, trains the same student and
scores it, one setting after another. The loop scores at the end only and measures the images again for each setting;
the sweep also scores half-way, and measures the images once. Both are timed alternately as whole processes, including
start-up; their scores must be equal. A small untimed round first compiles the Python files.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from PIL import Image

# Nothing here may import Ray or Optuna: the loop would pay for it.
from benchmarks.common import ROOT, blocks, machine, parser, write_result
from idc_ray.condensation.budget import budgets_of
from idc_ray.condensation.condenser import Condenser
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import CondenseConfig, load
from idc_ray.config.train import TrainConfig, Validation
from idc_ray.models import bundled_teacher_bytes, load_teacher
from idc_ray.pipeline.device import set_up_torch
from idc_ray.pipeline.inputs import find_input, readable_samples
from idc_ray.store.filesystem import resolve
from idc_ray.training.device import set_up_training
from idc_ray.training.fit import Fit
from idc_ray.training.pairs import Pair, PairTable, Patches
from idc_ray.training.validation import validation_pairs

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: Goal: largest overhead of the sweep.
GOAL = 0.15

#: Largest difference of a trial's scores in dB that counts as equal.
SAME = 1e-6

#: Images per call on both sides: the job's default on CPUs.
TOGETHER = 4

#: A round that takes a minute.
QUICK = {"trials": 2, "images": 4, "steps": 40, "rounds": 1}

#: Number of validation images, and their side; few, as scoring is only a check here.
SCORED, SIDE = 8, 128

CONDENSE: dict[str, Any] = {"tile_size": 32, "ratio": 0.02, "allocation": "difficulty"}

#: A student of 0.1 million weights.
STUDENT: dict[str, Any] = {
    "model": "edsr_small",
    "model_arguments": {"channels": 24, "blocks": 7},
    "batch_size": 4,
    "patch_size": 32,
    "optimizer.learning_rate": 1e-3,  # this and ema as in the packaged spaces, for few steps
    "ema": 0.99,
}

#: Search space, with a single feature layer, as in tune_spaces/loss_weights.yaml.
PARAMETERS: dict[str, Any] = {
    "init": ["random", "hardest"],
    "exchange.cells": [1, 2, 4],
    "loss.gamma": {"uniform": [0, 4]},
    "loss.hardness": ["difficulty", "gradient", "both"],
}


def timed(log: Path, *command: object) -> float:
    """Run a Python process and return its seconds; its output goes to a file."""
    begin = time.monotonic()
    with log.open("a") as file:
        done = subprocess.run([sys.executable, *map(str, command)], stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{log.read_text()[-3000:]}")
    return time.monotonic() - begin


def write_inputs(folder: Path, arguments: argparse.Namespace) -> None:
    """Write pieces of photographs to condense and to validate on, and the search space."""
    pieces = blocks(arguments.input, 320, 480, 100, arguments.images + SCORED)
    for name in ("images", "validation"):
        (folder / name).mkdir(parents=True)
    for index, piece in enumerate(pieces[: arguments.images]):
        Image.fromarray(piece).save(folder / "images" / f"{index:05d}.png")
    for index, piece in enumerate(pieces[arguments.images :]):
        Image.fromarray(piece[:SIDE, :SIDE]).save(folder / "validation" / f"{index:05d}.png")
    settings = {"condense": CONDENSE, "train": STUDENT | {"iterations": arguments.steps}}
    space = {"settings": settings, "parameters": PARAMETERS}
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))


def sweep(folder: Path, output: Path, arguments: argparse.Namespace) -> float:
    """Run the tuning job and return its seconds."""
    return timed(
        output.with_suffix(".log"), ROOT / "jobs" / "tune.py", "--space", folder / "space.yaml", "--output", output,
        "--input", folder / "images", "--images", arguments.images, "--validation", folder / "validation",
        "--samples", arguments.trials, "--search", "random", "--stopper", "none",
        "--actors.max-size", 1, "--actors.images-per-step", TOGETHER, "--actors.device", "cpu",
    )  # fmt: skip


def loop(folder: Path, draws: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> Iterator[float]:
    """Yield the score of each setting in dB."""
    own = CONDENSE | {"input": str(folder / "images"), "output": str(folder / "none"), "actors.device": "cpu"}
    configs = [load(CondenseConfig, None, own | draw) for draw in draws]
    listing = readable_samples(find_input(configs[0]), configs[0], arguments.images)
    images = [ImageTask(each.image_id, each.lr) for each in listing]
    steps = arguments.steps
    once = {"iterations": steps, "validation.every": steps, "checkpoint_every": steps, "workers.threads": 1}
    training = load(TrainConfig, None, STUDENT | once)
    named = Validation(images=str(folder / "validation"), max_images=SCORED)
    pairs = validation_pairs(training.model_copy(update={"validation": named}), [])
    teacher = bundled_teacher_bytes(training.scale)
    for config in configs:
        yield _student(training, _tiles(config, teacher, images), pairs)


def _tiles(config: CondenseConfig, teacher: bytes, images: list[ImageTask]) -> list[Pair]:
    device = set_up_torch(config.actors, has_gpu=False)
    layer = config.rlff.feature_layer
    network = load_teacher(teacher, scale=config.scale, feature_layer=layer, name="the teacher", device=device)
    condenser = Condenser(network, config, device)
    rows = [
        {"image_id": image.image_id, "difficulty": condenser.difficulty(image.lr), "height": image.lr.shape[0],
         "width": image.lr.shape[1]}
        for image in images
    ]  # fmt: skip
    budgets = budgets_of(config, rows)
    images = [replace(image, tiles=budgets[image.image_id]) for image in images]
    tiles: list[Pair] = []
    for first in range(0, len(images), TOGETHER):
        group = images[first : first + TOGETHER]
        for image, result in zip(group, condenser.condense(group), strict=True):
            if not isinstance(result, Condensed):
                raise result
            pairs = zip(result.lr_tiles, result.hr_tiles, strict=True)
            tiles += [Pair(image.image_id, lr, hr) for lr, hr in pairs]
    return tiles


def _student(config: TrainConfig, tiles: list[Pair], validation: list[Pair]) -> float:
    set_up_training(config.workers.threads or 1)
    table = PairTable.build(tiles, config.scale)
    patches = Patches(table, config.patch_size, config.batch_size, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        training = Fit(config, patches, validation, resolve(folder), lambda event: None, {})
        training.run()
    assert training.best is not None
    return training.best[0]


def largest_difference(trials: Sequence[FrozenTrial], scores: Sequence[float]) -> float:
    """Largest difference of the two sides' scores in dB; exits if they did not do the same work."""
    if len(trials) != len(scores):
        raise SystemExit(f"the sweep has {len(trials)} trials, the loop {len(scores)}")
    differences = [0.0]
    for trial, score in zip(trials, scores, strict=True):
        psnr, reason = trial.user_attrs.get("psnr", math.nan), trial.user_attrs.get("reason", "")
        differences.append(abs(psnr - score))
        if trial.state.name != "COMPLETE" or not differences[-1] <= SAME:
            found = f"{trial.state.name}, {psnr} dB in the sweep, {score} dB in the loop {reason}"
            raise SystemExit(f"trial {trial.number} differs between the sides: {found}")
    return max(differences)


def compared(sweep_seconds: float, loop_seconds: float, trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Figures of a round."""
    seeds = [seed for trial in trials for seed in trial.user_attrs["seeds"]]
    inside = sum(seed["condense_seconds"] + seed["train_seconds"] for seed in seeds)
    return {
        "sweep": sweep_seconds,
        "loop": loop_seconds,
        "sweep_outside_trials": sweep_seconds - inside,
        "overhead": sweep_seconds / loop_seconds - 1,
        "overhead_seconds_a_trial": (sweep_seconds - loop_seconds) / len(trials),
    }


def _round(folder: Path, number: int, arguments: argparse.Namespace) -> dict[str, float]:
    from idc_ray.tuning.study import read_study, started

    output, scores, draws = folder / f"sweep{number}", folder / f"loop{number}.json", folder / f"draws{number}.json"
    sweep_seconds = sweep(folder, output, arguments)
    trials = started(read_study(resolve(str(output))))
    draws.write_text(json.dumps([trial.user_attrs["draw"] for trial in trials]))
    options = ["--inputs", folder, "--draws", draws, "--scores", scores]
    options += ["--images", arguments.images, "--steps", arguments.steps]
    loop_seconds = timed(scores.with_suffix(".log"), __file__, *options)
    difference = largest_difference(trials, json.loads(scores.read_text()))
    return compared(sweep_seconds, loop_seconds, trials) | {"largest_difference_db": difference}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if not arguments.quick:
        small = argparse.Namespace(**vars(arguments) | QUICK)
        write_inputs(folder / "small", small)
        _round(folder / "small", 0, small)
    write_inputs(folder, arguments)
    work = f"{arguments.trials} trials of {arguments.images} images and {arguments.steps} steps"
    print(f"{work}, {arguments.rounds} rounds, {machine()}", flush=True)
    rounds: list[dict[str, float]] = []
    for number in range(arguments.rounds):
        row = _round(folder, number, arguments)
        rounds.append(row)
        text = f"sweep {row['sweep']:.1f} s ({row['sweep_outside_trials']:.1f} s outside trials), "
        text += f"loop {row['loop']:.1f} s: {row['overhead']:+.1%}, {row['overhead_seconds_a_trial']:+.2f} s per trial"
        print(text, flush=True)
    names = ("overhead", "overhead_seconds_a_trial")
    medians = {name: statistics.median(row[name] for row in rounds) for name in names}
    print(f"overhead: {medians['overhead']:+.1%} (goal: at most {GOAL:.0%}); the scores are equal")
    return {"rounds": rounds, **medians, "goal": GOAL}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--trials", type=int, default=6, help="number of trials; default 6")
    options.add_argument("--images", type=int, default=20, help="images per trial; default 20")
    options.add_argument("--steps", type=int, default=800, help="training steps per student; default 800")
    options.add_argument("--rounds", type=int, default=2, help="number of alternating runs of both sides; default 2")
    options.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--draws", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--scores", type=Path, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.draws:
        draws = json.loads(arguments.draws.read_text())
        arguments.scores.write_text(json.dumps(list(loop(arguments.inputs, draws, arguments))))
        return
    if arguments.quick:
        vars(arguments).update(QUICK)
    # On a busy machine, Ray's niceness would slow down the workers but not the loop.
    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["PYTHONPYCACHEPREFIX"] = f"{scratch}/compiled"
        write_result("tune_overhead", arguments, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
