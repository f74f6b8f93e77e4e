"""A job of many parts in MLflow: a parent run, and below it a run for each part. One writer, the driver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from idc_ray.config import Mlflow
from idc_ray.config.base import Section
from idc_ray.errors import BadRequest
from idc_ray.store.filesystem import StorageFolder
from idc_ray.tracking import Tracker

__all__ = ["RunFamily"]

log = logging.getLogger(__name__)

FILE = "mlflow.json"

Status = Literal["FINISHED", "FAILED", "KILLED"]


class RunFamily:
    """What MLflow knows is kept in the output, so that a continued job neither repeats nor forgets a run.

    Args:
        settings: section ``mlflow`` of the job's configuration.
        config: the job's configuration, recorded with the parent.
        output: where the job writes.
        storage: the same.
        digest: of what the job is about.

    Raises:
        BadRequest: MLflow cannot be used as configured.
    """

    def __init__(self, settings: Mlflow, config: Section, output: str, storage: StorageFolder, digest: str) -> None:
        self._settings, self._output, self._storage = settings, output, storage
        # Names of the children that are logged completely, and the runs of these and of those that were begun.
        nothing: dict[str, Any] = {"parent": None, "children": [], "runs": {}}
        self._known = nothing | (storage.read_json(FILE, "delete that file") or {})
        self._parent = Tracker.start(settings, output, digest, self._known["parent"])
        if self._parent.run_id is None:
            return
        if self._parent.run_id != self._known["parent"]:
            self._known = nothing | {"parent": self._parent.run_id}
            storage.write_json(FILE, self._known)
        self._parent.log_params(config.model_dump(mode="json"))
        self._parent.log_artifact(config.to_yaml(), "config.yaml")

    def child(self, name: str, report: Callable[[Tracker], None], status: Status = "FINISHED") -> None:
        """Record a part that ended, unless an earlier launch did.

        Args:
            name: of the part, unique in the job.
            report: logs what there is to log.
            status: how it ended.
        """
        if self._parent.run_id is None or name in self._known["children"]:
            return
        begun = self._known["runs"].get(name)
        try:
            child = Tracker.start(self._settings, self._output, name, begun, name=name, parent=self._parent.run_id)
        except BadRequest as error:  # the job is worth more than its metrics; a next launch logs it
            log.warning("%s is not tracked: %s", name, error)
            return
        if child.run_id != begun:  # a launch that is killed before the end goes on with this run
            self._known["runs"][name] = child.run_id
            self._storage.write_json(FILE, self._known)
        report(child)
        child.finish(status)
        self._known["children"].append(name)
        self._storage.write_json(FILE, self._known)

    def report(self, files: Mapping[str, bytes], finished: int) -> None:
        """Log tables and pictures in place of those before, and how many parts are done."""
        for name, content in files.items():
            self._parent.log_artifact(content, name)
        self._parent.log_metrics(finished, {"finished": finished})

    def finish(self, status: Status) -> None:
        """Close the parent run."""
        self._parent.finish(status)
