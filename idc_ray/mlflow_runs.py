"""A parent run of MLflow with a child run for each part of a job. The driver is the only writer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from idc_ray.config import Mlflow
from idc_ray.config.base import Section
from idc_ray.errors import BadRequest
from idc_ray.store.filesystem import StorageFolder
from idc_ray.tracking import Tracker

log = logging.getLogger(__name__)

FILE = "mlflow.json"

Status = Literal["FINISHED", "FAILED", "KILLED"]


class RunFamily:
    """A parent run and its children. Their ids are stored in the output, so that a continued job goes on with them.

    Args:
        settings: section ``mlflow`` of the job's configuration.
        config: the job's configuration, recorded with the parent.
        output: URI of the job's output.
        storage: the output.
        digest: the job's digest, for the name of the run.

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
        """Log a finished part, unless an earlier attempt did.

        Args:
            name: the part's name, unique in the job.
            report: logs metrics and files of the part.
            status: the part's status.
        """
        if self._parent.run_id is None or name in self._known["children"]:
            return
        begun = self._known["runs"].get(name)
        try:
            child = Tracker.start(self._settings, self._output, name, begun, name=name, parent=self._parent.run_id)
        except BadRequest as error:  # the job is worth more than its metrics; a next launch logs it
            log.warning("%s is not in MLflow yet, the next attempt of the job logs it: %s", name, error)
            return
        if child.run_id != begun:  # the next attempt continues this run if this one is killed
            self._known["runs"][name] = child.run_id
            self._storage.write_json(FILE, self._known)
        report(child)
        child.finish(status)
        self._known["children"].append(name)
        self._storage.write_json(FILE, self._known)

    def report(self, files: Mapping[str, bytes], finished: int) -> None:
        """Log tables and pictures, replacing those before, and the number of finished parts."""
        for name, content in files.items():
            self._parent.log_artifact(content, name)
        self._parent.log_metrics(finished, {"finished": finished})

    def finish(self, status: Status) -> None:
        """Close the parent run."""
        self._parent.finish(status)
