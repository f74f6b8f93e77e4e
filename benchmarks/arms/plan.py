"""Plan of a campaign, with time estimates."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from benchmarks.arms.queue import Arm, Queue
from idc_ray.config.train import TrainConfig
from idc_ray.training.fit import student_spec
from idc_ray.training.loop import Trainer

__all__ = ["format_plan", "steps_per_second"]

#: Timed steps, and untimed steps before them.
TIMED, WARM = 5, 2


def format_plan(
    queue: Queue, missing: Sequence[Arm], minutes: float, parallel: int, rate: float | None, device: torch.device
) -> str:
    """Arms with steps, estimated seconds and the call that they would finish in.

    Args:
        queue: all arms.
        missing: arms without a result.
        minutes: time limit of one call.
        parallel: number of arms trained at a time.
        rate: steps/s of all arms together; None: measured here for one student of each kind.
        device: device of the measurement.
    """
    rates: dict[str, float] = {}
    lines = [f"{queue.name}: {len(queue.arms)} arms, {len(missing)} to train, {parallel} at a time"]
    begin, calls = 0.0, 1
    for arm in missing:
        kind = f"{arm.train.model} {arm.train.batch_size} x {arm.train.patch_size} {arm.train.model_arguments}"
        if kind not in rates:
            rates[kind] = rate or steps_per_second(arm.train, device)
        seconds = arm.train.iterations / rates[kind]
        calls = int((begin + seconds) // (60 * minutes)) + 1
        begin += seconds
        online = ", without online labels" if arm.train.labels == "online" else ""
        steps = f"{arm.train.iterations:7} steps  {seconds:7.0f} s"
        lines.append(f"  {arm.title:32} {arm.train.model:16} {steps}  call {calls}{online}")
    how = "as given" if rate else f"of one student, measured on {device.type}"
    for kind, measured in rates.items():
        lines.append(f"{kind}: {measured:.1f} steps/s, {how}")
    lines.append(f"about {begin / 60:.0f} minutes in total, {calls} calls of {minutes:g} minutes, without condensing")
    return "\n".join(lines)


def steps_per_second(config: TrainConfig, device: torch.device) -> float:
    """Steps/s of one student on random patches."""
    model = student_spec(config).build().to(device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trainer = Trainer(model, config)
    side = config.patch_size
    patches = [torch.rand(config.batch_size, 3, f * side, f * side, device=device) for f in (1, config.scale)]
    for step in range(WARM + TIMED):
        if step == WARM:
            trainer.read_losses()
            begin = time.perf_counter()
        trainer.advance(*patches)
    trainer.read_losses()
    return TIMED / (time.perf_counter() - begin)
