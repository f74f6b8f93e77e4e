"""MLflow tracking of each arm and seed of a comparison."""

from __future__ import annotations

from idc_ray.comparison.results import Result
from idc_ray.tracking import Tracker

__all__ = ["log_result"]


def log_result(run: Tracker, result: Result) -> None:
    """Log a finished arm and seed."""
    names = ("method", "ratio", "labels", "allocation", "student", "seed", "steps", "machine")
    run.log_params({name: getattr(result, name) for name in names})
    for step, psnr in result.curve:
        run.log_metrics(step, {"curve_psnr": psnr})
    run.log_metrics(result.steps, _numbers(result))


def _numbers(result: Result) -> dict[str, float]:
    numbers = {f"set_{name}": float(value) for name, value in result.set.items()}
    numbers["train_seconds"] = result.train_seconds
    for name, scored in result.sets.items():
        for metric in ("psnr", "ssim"):
            if scored[metric] is not None:
                numbers[f"{name}_{metric}"] = scored[metric]
    return numbers
