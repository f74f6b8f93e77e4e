"""One trial, in this process: for each seed, condenses the images, trains a student on the tiles and scores it."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import ray
import torch
from ray import tune as ray_tune

from idc_ray.comparison.tasks import guarded
from idc_ray.condensation.budget import budgets_of, mean_difficulty
from idc_ray.condensation.condenser import SURVEY_CROPS, Condenser
from idc_ray.condensation.load import load_condenser
from idc_ray.condensation.tasks import Condensed, ImageTask
from idc_ray.config import CondenseConfig
from idc_ray.config.train import TrainConfig
from idc_ray.errors import IdcError
from idc_ray.images import grid_count
from idc_ray.models import load_upscaler
from idc_ray.pipeline.condense import IMAGES_PER_STEP
from idc_ray.pipeline.device import set_up_torch
from idc_ray.store.filesystem import resolve
from idc_ray.training.data import resident_patches
from idc_ray.training.device import set_up_training
from idc_ray.training.fit import Event, Fit, World
from idc_ray.training.pairs import NO_HR, Pair
from idc_ray.tuning.shared_inputs import SharedInputs
from idc_ray.tuning.space import Draw


@dataclass(frozen=True)
class SeedOutcome:
    """Result of one seed of a trial, so far.

    Attributes:
        seed: seed of condensing and training.
        psnr: mean PSNR over the validation images at the last point of the curve, dB.
        ratio: LR pixels of the tiles over those of the images.
        tiles: number of tiles.
        condense_seconds: time of condensing, without shared measurements.
        train_seconds: time of training and validation.
        left_out: number of images that could not be condensed.
        curve: (step, PSNR in dB) of the validations.
    """

    seed: int
    psnr: float
    ratio: float
    tiles: int
    condense_seconds: float
    train_seconds: float
    left_out: int
    curve: list[tuple[int, float]]


@dataclass(frozen=True)
class TrialReport:
    """Report of a trial, at each rung of its first seed and at the end of each seed.

    Attributes:
        step: number of training steps over all seeds.
        psnr: PSNR of the current seed at a rung; mean over the finished seeds at the end of a seed, dB.
        deviation: standard deviation over the finished seeds; None for fewer than two.
        ratio: mean ratio over the seeds so far.
        cost: mean seconds of condensing.
        finished: whether the trial is finished.
        failed: reason of a failure; empty without one.
        seeds: results of the seeds so far.
    """

    step: int = 0
    psnr: float = math.nan
    deviation: float | None = None
    ratio: float = math.nan
    cost: float = math.nan
    finished: bool = False
    failed: str = ""
    seeds: list[SeedOutcome] = field(default_factory=list)


def run_trial(draw: Draw, inputs: SharedInputs, report: Callable[[TrialReport], None]) -> None:
    """Run a trial. Failures are reported, so that Ray Tune does not retry them.

    Args:
        draw: point of the space.
        inputs: shared inputs.
        report: called with each report; it ends the trial by raising ``SystemExit``.
    """
    status, value = guarded(lambda: _run_seeds(draw, inputs, report))
    if status == "failed":
        report(TrialReport(failed=value))


def trainable(config: dict[str, Any], inputs: SharedInputs) -> None:
    """The function that Ray Tune runs; its process is reused by later trials."""
    run_trial(config["draw"], inputs, lambda report: ray_tune.report(asdict(report)))


def _run_seeds(draw: Draw, inputs: SharedInputs, report: Callable[[TrialReport], None]) -> None:
    settings = inputs.settings
    seeds = settings.config.seeds
    done: list[SeedOutcome] = []
    for index, seed in enumerate(seeds):
        condense = settings.condense(draw, seed)
        train = settings.train.model_copy(update={"seed": seed})

        def at_rung(outcome: SeedOutcome, first: bool = index == 0) -> None:
            step = outcome.curve[-1][0]
            if first and step < settings.train.iterations:  # a later seed is judged by its end alone
                report(_report([outcome], step, finished=False))

        done.append(_run_seed(condense, train, inputs, at_rung))
        report(_report(done, train.iterations * len(done), finished=len(done) == len(seeds)))


def _report(seeds: list[SeedOutcome], step: int, finished: bool) -> TrialReport:
    psnrs = [each.psnr for each in seeds]
    return TrialReport(
        step=step,
        psnr=statistics.fmean(psnrs),
        deviation=statistics.stdev(psnrs) if len(psnrs) > 1 else None,
        ratio=statistics.fmean(each.ratio for each in seeds),
        cost=statistics.fmean(each.condense_seconds for each in seeds),
        finished=finished,
        seeds=list(seeds),
    )


def _run_seed(
    condense: CondenseConfig, train: TrainConfig, inputs: SharedInputs, at_rung: Callable[[SeedOutcome], None]
) -> SeedOutcome:
    device = set_up_torch(condense.actors, has_gpu=bool(ray.get_gpu_ids()))
    begin = time.perf_counter()
    tiles, left_out = _condense(condense, inputs, device)
    if not tiles:
        raise IdcError(f"the images gave no tiles, and {left_out} of them failed; the ratio may be too small")
    condensed = time.perf_counter()
    side = condense.tile_size
    outcome = SeedOutcome(
        seed=condense.seed, psnr=math.nan, ratio=len(tiles) * side**2 / inputs.pixels, tiles=len(tiles),
        condense_seconds=condensed - begin, train_seconds=0.0, left_out=left_out, curve=[],
    )  # fmt: skip

    def listen(event: Event) -> None:
        nonlocal outcome
        if event["kind"] != "validation":
            return
        psnr = float(event["psnr"])
        if not math.isfinite(psnr):
            raise IdcError(f"the student's PSNR is {psnr} at step {event['step']}")
        curve = [*outcome.curve, (int(event["step"]), psnr)]
        outcome = replace(outcome, psnr=psnr, curve=curve, train_seconds=time.perf_counter() - condensed)
        at_rung(outcome)

    set_up_training(train.workers.threads or 1)
    patches = resident_patches(train, tiles, device)
    pairs: list[Pair] = ray.get(inputs.validation)
    labeler = None
    if train.labels == "online":
        labeler = load_upscaler(ray.get(inputs.teacher), scale=train.scale, device=device, name="the teacher")
    with tempfile.TemporaryDirectory(prefix="idc_trial_") as folder:
        world = World(device=device)
        Fit(train, patches, pairs, resolve(folder), listen, {}, world, inputs.settings.eval_steps, labeler).run()
    return outcome


def _condense(config: CondenseConfig, inputs: SharedInputs, device: torch.device) -> tuple[list[Pair], int]:
    """Tiles of all images, and the number of failed images, which the condense job would quarantine."""
    tasks = inputs.tasks(config)
    condenser = load_condenser(config, ray.get(inputs.teacher), device)
    weighed = config.allocation == "difficulty"
    rows = [
        {"image_id": task.image_id, "height": task.lr.shape[0], "width": task.lr.shape[1],
         "difficulty": _difficulty(condenser, task) if weighed else None}
        for task in tasks
    ]  # fmt: skip
    if weighed:
        mean_difficulty(rows)  # raises where there is none
    budgets = budgets_of(config, rows)
    tasks = [replace(task, tiles=budgets[task.image_id]) for task in tasks]
    together = config.actors.images_per_step or IMAGES_PER_STEP["GPUs" if device.type == "cuda" else "CPUs"]
    pairs: list[Pair] = []
    left_out = 0
    for first in range(0, len(tasks), together):
        group = tasks[first : first + together]
        for task, result in zip(group, condenser.condense(group), strict=True):
            if isinstance(result, Condensed):
                pairs += _pairs(task.image_id, result)
            else:
                left_out += 1
    return pairs, left_out


def _difficulty(condenser: Condenser, task: ImageTask) -> float:
    height, width = task.lr.shape[:2]
    if task.teacher_cache is None or grid_count(height, width, condenser.config.tile_size) > SURVEY_CROPS:
        return condenser.difficulty(task.lr)
    return float(torch.tensor(task.teacher_cache.difficulties).double().mean())


def _pairs(name: str, result: Condensed) -> list[Pair]:
    hr_tiles = [NO_HR] * len(result.lr_tiles) if result.hr_tiles is None else result.hr_tiles
    tiles = zip(result.lr_tiles, hr_tiles, strict=True)
    return [Pair(f"{name}_{index:04d}", lr, hr) for index, (lr, hr) in enumerate(tiles)]
