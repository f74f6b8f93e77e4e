"""A comparison in MLflow: a run with the table and the plots, below it a run for each arm and seed. One writer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from idc_ray.comparison.results import Result
from idc_ray.config.compare import CompareConfig
from idc_ray.errors import BadRequest
from idc_ray.store.filesystem import Place
from idc_ray.tracking import Tracker

__all__ = ["Tracking"]

log = logging.getLogger(__name__)

FILE = "mlflow.json"


class Tracking:
    """What MLflow knows is kept in the output, so that a continued comparison neither repeats nor forgets a run.

    Args:
        config: the comparison's.
        place: its output.
        digest: of what is compared.

    Raises:
        BadRequest: MLflow cannot be used as configured.
    """

    def __init__(self, config: CompareConfig, place: Place, digest: str) -> None:
        self._config, self._place = config, place
        self._known: dict[str, Any] = place.read_json(FILE, "delete that file") or {"parent": None, "children": []}
        self._parent = Tracker.start(config.mlflow, config.output, digest, self._known["parent"])
        if self._parent.run_id is None:
            return
        if self._parent.run_id != self._known["parent"]:
            self._known = {"parent": self._parent.run_id, "children": []}
            place.write_json(FILE, self._known)
        self._parent.log_params(config.model_dump(mode="json"))
        self._parent.log_artifact(config.to_yaml(), "config.yaml")

    def result(self, result: Result) -> None:
        """Log a finished arm and seed, unless an earlier launch did."""
        if self._parent.run_id is None or result.name in self._known["children"]:
            return
        try:
            child = Tracker.start(
                self._config.mlflow, self._config.output, result.name, name=result.name, parent=self._parent.run_id
            )
        except BadRequest as error:  # the comparison is worth more than its metrics; a next launch logs it
            log.warning("%s is not tracked: %s", result.name, error)
            return
        names = ("method", "ratio", "labels", "allocation", "student", "seed", "steps", "machine")
        child.log_params({name: getattr(result, name) for name in names})
        for step, psnr in result.curve:
            child.log_metrics(step, {"curve_psnr": psnr})
        child.log_metrics(result.steps, _numbers(result))
        child.finish("FINISHED")
        self._known["children"].append(result.name)
        self._place.write_json(FILE, self._known)

    def report(self, files: Mapping[str, bytes], finished: int) -> None:
        """Log the table and the plots in place of those before."""
        for name, content in files.items():
            self._parent.log_artifact(content, name)
        self._parent.log_metrics(finished, {"finished": finished})

    def finish(self, status: Any) -> None:
        """Close the parent run: FINISHED, FAILED or KILLED."""
        self._parent.finish(status)


def _numbers(result: Result) -> dict[str, float]:
    numbers = {f"set_{name}": float(value) for name, value in result.set.items()}
    numbers["train_seconds"] = result.train_seconds
    for name, scored in result.sets.items():
        for metric in ("psnr", "ssim"):
            if scored[metric] is not None:
                numbers[f"{name}_{metric}"] = scored[metric]
    return numbers
