"""Dry run of a sweep: space, trials, and time extrapolated from a few images and steps."""

from __future__ import annotations

import json
import math

import torch

from idc_ray.cpus import usable_cpus
from idc_ray.images import Instance
from idc_ray.pipeline.device import set_up_torch
from idc_ray.pipeline.dry_run import TIMED_IMAGES, seconds_per_image
from idc_ray.training.dry_run import seconds_per_step
from idc_ray.tuning.prepare import Plan
from idc_ray.tuning.space import Parameter
from idc_ray.units import duration


def estimate(plan: Plan) -> str:
    """Parameters, trials and hours, as text."""
    config, settings = plan.config, plan.settings
    device = set_up_torch(config.actors, has_gpu=torch.cuda.is_available())
    condense = settings.condense(plan.space.first, config.seeds[0])
    samples = [Instance(task.image_id, "", task.lr, task.hr, 0, "") for task in plan.images[:TIMED_IMAGES]]
    making = seconds_per_image(condense, samples, plan.teacher, device) * len(plan.images)
    training = seconds_per_step(settings.train, device) * settings.train.iterations
    trials = config.samples
    lines = [f"{each.name}: {_describe(each)}" for each in plan.space.parameters]
    if config.search == "grid":
        points = len(plan.space.grid(config.grid_points))
        lines.append(f"a grid of {points} points" + (f", of which {trials} are done" if trials < points else ""))
        trials = min(trials, points)
    workers = config.actors.max_size or (torch.cuda.device_count() if device.type == "cuda" else usable_cpus())
    seeds = len(config.seeds)
    hours = math.inf if config.hours is None else 3600 * config.hours
    total = min(hours, trials * seeds * (making + training) / workers)
    lines += [
        "",
        f"{trials} trials of {seeds} seeds: {len(plan.images)} images, {settings.train.iterations} steps, "
        f"{len(plan.validation)} images to score on",
        f"a seed, at the space's first point: condense {duration(making)}, train {duration(training)}, without scoring",
        f"at most about {duration(total)} with {workers} trials at a time on {device.type}"
        + (", less what is stopped early" if config.stops_early else ""),
        "dry run: nothing was started or written",
    ]
    return "\n".join(lines)


def _describe(parameter: Parameter) -> str:
    values = json.dumps(list(parameter.values))
    step = "" if parameter.step is None else f" in steps of {parameter.step:g}"
    when = [f"{name} is {' or '.join(json.dumps(v) for v in values)}" for name, values in parameter.when.items()]
    return f"{parameter.kind} {values}{step}" + (f", where {' and '.join(when)}" if when else "")
