"""Results: one file per finished arm and seed, and an MLflow run; failures with their reasons."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder
from idc_ray.tracking import Tracker

RESULTS, FAILURES = "results", "failures"
FIX = "delete that file to score the arm again"


@dataclass(frozen=True)
class Result:
    """Result of one arm and seed.

    Attributes:
        name: name of the file.
        core: the arm without its student, see :class:`idc_ray.comparison.arms.Arm`.
        method, labels, allocation, student, seed: which arm.
        ratio: requested ratio.
        set: facts of the training set, see :class:`idc_ray.comparison.sets.SetFacts`.
        steps: number of training steps.
        train_seconds: training time without validation.
        sets: scores by set: ``psnr`` (dB on Y, None if infinite), ``ssim``, ``images``.
        curve: (step, PSNR) over the training.
        machine: kind of machine.
        finished: time of the end, ISO 8601.
    """

    name: str
    core: str
    method: str
    ratio: float
    labels: str
    allocation: str
    student: str
    seed: int
    set: dict[str, Any]
    steps: int
    train_seconds: float
    sets: dict[str, dict[str, Any]]
    curve: list[tuple[int, float]]
    machine: str
    finished: str

    @property
    def arm(self) -> str:
        """The arm's name."""
        return f"{self.core}-{self.student}"


@dataclass(frozen=True)
class Failure:
    """Failure of one arm and seed, with its reason; the next attempt retries it."""

    name: str
    arm: str
    seed: int
    reason: str


class Results:
    """All results of an output, by name.

    Args:
        storage: the output.
    """

    def __init__(self, storage: StorageFolder) -> None:
        self._storage = storage

    def read(self, name: str) -> Result | None:
        """Read a result; None if the arm is not finished.

        Raises:
            IdcError: the file is damaged.
        """
        file = f"{RESULTS}/{name}.json"
        value = self._storage.read_json(file, FIX)
        if value is None:
            return None
        if set(value) != {field.name for field in fields(Result)}:
            raise IdcError(f"{self._storage.shown(file)} is not a result of this version; {FIX}")
        return Result(**value | {"curve": [(step, psnr) for step, psnr in value["curve"]]})

    def write(self, result: Result) -> None:
        """Write a result and delete an earlier failure."""
        self._storage.write_json(f"{RESULTS}/{result.name}.json", asdict(result))
        self._storage.delete(f"{FAILURES}/{result.name}.json")

    def write_failure(self, failure: Failure) -> None:
        """Write the reason of a failure."""
        self._storage.write_json(f"{FAILURES}/{failure.name}.json", asdict(failure))


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
