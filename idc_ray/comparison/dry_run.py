"""Dry run of a comparison: arms, tasks, and time extrapolated from a few images and steps."""

from __future__ import annotations

import time

import torch

from idc_ray.comparison.arms import Arm
from idc_ray.comparison.prepare import Plan
from idc_ray.comparison.results import Results
from idc_ray.cpus import usable_cpus
from idc_ray.errors import BadRequest
from idc_ray.images import Instance
from idc_ray.models import load_upscaler
from idc_ray.pipeline.device import set_up_torch
from idc_ray.pipeline.dry_run import TIMED_IMAGES, none_readable, seconds_per_image
from idc_ray.pipeline.inputs import readable_samples
from idc_ray.store.filesystem import resolve
from idc_ray.training.dry_run import seconds_per_step
from idc_ray.units import duration


def estimate(plan: Plan) -> str:
    """Arms, trainings, sets, and hours left, as text.

    Raises:
        BadRequest: no image of the sample can be read.
    """
    seeds, results = plan.seeds, Results(resolve(plan.output))
    device = set_up_torch(plan.actors, has_gpu=torch.cuda.is_available())
    rejected: list[str] = []
    samples = list(readable_samples(plan.listing, plan.arms[0].condense, TIMED_IMAGES, on_rejected=rejected.append))
    if not samples:
        raise BadRequest(none_readable(plan.listing, rejected))
    steps = {arm.student: seconds_per_step(arm.train, device) for arm in plan.arms}
    sets: dict[str, float] = {}
    lines = []
    total = 0.0
    for arm in plan.arms:
        training = steps[arm.student] * arm.train.iterations
        left = [seed for seed in seeds if results.read(arm.result_name(plan.data, seed)) is None]
        new = {arm.set_name(plan.data, seed) for seed in seeds} - sets.keys()
        making = _set_seconds(plan, arm, samples, device) if new else 0.0
        sets |= dict.fromkeys(new, making)
        needed = new & {arm.set_name(plan.data, seed) for seed in left}
        total += making * len(needed) + training * len(left)
        known = len(seeds) - len(left)
        before = f", {known} of {len(seeds)} seeds done" if known else ""
        lines.append(f"{arm.name}: condense {duration(making)}, train {duration(training)}{before}")
    workers = plan.actors.max_size or (torch.cuda.device_count() if device.type == "cuda" else usable_cpus())
    lines += [*plan.left_out, ""]
    lines.append(f"{len(plan.arms)} arms, {len(seeds)} seeds: {len(plan.trainings)} trainings on {len(sets)} sets")
    lines.append(f"about {duration(total / workers)} with {workers} tasks at a time on {device.type}, without scoring")
    return "\n".join(lines) + "\ndry run: nothing was started or written"


def _set_seconds(plan: Plan, arm: Arm, samples: list[Instance], device: torch.device) -> float:
    if arm.whole and arm.labels != "teacher":
        return 0.0
    if not arm.whole:
        return seconds_per_image(arm.condense, samples, plan.teacher, device) * plan.listing.manifest.num_rows
    teacher = load_upscaler(plan.teacher, scale=arm.condense.scale, device=device, name="the teacher")
    begin = time.perf_counter()
    for sample in samples:
        teacher.upscale_image(sample.lr)
    return (time.perf_counter() - begin) / len(samples) * plan.listing.manifest.num_rows
