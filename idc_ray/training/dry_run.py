"""Dry run of a training: estimates of data, size and time, from a few timed steps."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from idc_ray.config.train import TrainConfig
from idc_ray.pipeline.device import use_deterministic_algorithms
from idc_ray.training.data import fits_in_memory
from idc_ray.training.fit import student_spec
from idc_ray.training.loop import Trainer
from idc_ray.training.sources import Source
from idc_ray.units import duration, estimate_text, size

log = logging.getLogger(__name__)

#: Steps that are timed, after a slower first one.
TIMED_STEPS = 3

#: If the first step takes longer, it is the only one.
SLOW_SECONDS = 3.0

#: float32 values in the output for each weight: two checkpoints; and weights, average and Adam's two moments.
VALUES_PER_WEIGHT = 2 + 4


def estimate(config: TrainConfig, sources: Sequence[Source], done: int) -> str:
    """Readable estimate of a training: data, network, steps, bytes and time.

    Args:
        config: settings.
        sources: the data.
        done: number of steps already done.

    Raises:
        BadRequest: an image of the sample cannot be read.
    """
    found = sum(source.expected_bytes for source in sources)
    pixels = found / (3 * (1 + config.scale**2))
    passes = config.iterations * config.batch_size * config.patch_size**2 / max(1.0, pixels)
    spec, weights = student_spec(config), count_weights(config)
    workers = config.workers
    device = torch.device("cuda" if torch.cuda.is_available() and workers.gpus != 0 else "cpu")
    fits = fits_in_memory(config, sources, device, workers.count)
    log.info("timing a few steps of %s", spec)
    own = config.model_copy(update={"batch_size": config.batch_size // workers.count})
    seconds = seconds_per_step(own, device)
    lines = [("data", source.describe()) for source in sources]
    lines += [
        ("pixels", f"about {size(found)}, {'kept in memory' if fits else 'read in windows, as memory is too small'}"),
        ("validation", _validation(config)),
        ("network", f"{spec}: {weights:,} weights"),
        ("steps", f"{config.iterations} of {config.batch_size} patches of {config.patch_size} x {config.patch_size}"
         f", {passes:.3g} epochs" + (f"; {done} already done" if done else "")),
        ("bytes", f"about {size(4 * VALUES_PER_WEIGHT * weights)} in {config.output}, without MLflow's"),
        ("time", f"about {duration(seconds * max(0, config.iterations - done))} with {workers.count} workers like this "
         f"machine's {device.type}: {seconds:.3g} s per step, without validation"),
    ]  # fmt: skip
    return estimate_text(lines)


def count_weights(config: TrainConfig) -> int:
    """Weights of the student, without memory for them."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in student_spec(config).build().parameters())


def _validation(config: TrainConfig) -> str:
    settings = config.validation
    at_most = f", at most {settings.max_images} images, every {settings.every} steps"
    if settings.images is not None:
        return settings.images + at_most
    return f"{100 * settings.fraction:.3g} % of the data{at_most}" if settings.fraction else "none"


def seconds_per_step(config: TrainConfig, device: torch.device) -> float:
    """Seconds for one training step, timed on a few steps."""
    use_deterministic_algorithms(False)
    model = student_spec(config).build().to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(model, config)
    side, scale = config.patch_size, config.scale
    lr = torch.rand(config.batch_size, 3, side, side, device=device)
    hr = torch.rand(config.batch_size, 3, scale * side, scale * side, device=device)
    begin = time.perf_counter()
    trainer.advance(lr, hr)
    trainer.read_losses()
    first = time.perf_counter() - begin
    if first > SLOW_SECONDS:
        return first
    begin = time.perf_counter()
    for _ in range(TIMED_STEPS):
        trainer.advance(lr, hr)
    trainer.read_losses()
    return (time.perf_counter() - begin) / TIMED_STEPS
