"""MLflow with one writer, the driver: workers return numbers in their rows and never talk to MLflow.

Several writers corrupt or lock SQLite on a network file system, and metrics logged one by one cost 75 times as
much as in a batch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

from idc_ray.config import Mlflow
from idc_ray.errors import BadRequest
from idc_ray.interrupt import at_forced_end
from idc_ray.nested import flat
from idc_ray.redact import learn, printable, redact, redact_within

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)

FLUSH_METRICS = 500  # MLflow takes at most 1000 in a batch
FLUSH_SECONDS = 10.0
KEPT_METRICS = 20_000  # while MLflow is away; older ones are dropped, memory stays flat
RETRY_SECONDS = 300.0  # after a failure nothing is tried for so long: a dead server must not slow the job down
MAX_PARAMS = 100  # MLflow's limit for a batch
MAX_TEXT = 5000  # MLflow refuses params and tags longer than 6000 and 8000 characters


def tracking_uri(settings: Mlflow, output: str) -> str:
    """Where the run is tracked: the setting, else MLFLOW_TRACKING_URI, else a database in the output.

    Raises:
        BadRequest: the output is in an object store, where no database can be. Cheap: to be called before any work.
    """
    uri = settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        learn(uri)
        return uri
    folder = _local_folder(output)
    if folder is None:
        raise BadRequest(
            f"output {redact(output)!r} is in an object store, which cannot hold MLflow's database; "
            "set MLFLOW_TRACKING_URI (or --mlflow.tracking-uri) to a server, or give --no-mlflow.enabled"
        )
    return _database_uri(folder)


class Tracker:
    """One MLflow run. A tracker that is off has the same methods, which do nothing.

    Once started it never raises: if MLflow fails later, it warns once, lets the job go on, keeps the metrics and
    tries again every few minutes. Not for several threads.

    Attributes:
        run_id: MLflow's id of the run, to be stored for a resume; None if tracking is off.
    """

    def __init__(self, client: MlflowClient | None = None, run_id: str | None = None) -> None:
        self.run_id = run_id
        self._client = client
        self._metrics: list[Metric] = []
        self._flushed_at = time.monotonic()
        self._silent_until = 0.0
        self._warned = False
        self._ended = contextlib.ExitStack()
        if client is not None:
            self._ended.enter_context(at_forced_end(self._end_by_force))

    @classmethod
    def start(
        cls,
        settings: Mlflow,
        output: str,
        digest: str,
        run_id: str | None = None,
        name: str | None = None,
        parent: str | None = None,
    ) -> Tracker:
        """Begin a run, or continue ``run_id`` if it still exists.

        Args:
            settings: section ``mlflow`` of a configuration.
            output: where the job writes; its last part and the digest name the run.
            digest: the configuration's.
            run_id: the run of an earlier launch on the same output.
            name: of the run; None: the settings', else from output and digest.
            parent: run that this one is shown below.

        Raises:
            BadRequest: MLflow cannot be reached, or cannot be used as configured.
        """
        if not settings.enabled:
            return cls()
        uri = tracking_uri(settings, output)
        make_client = _import_client()
        try:
            client = make_client(uri)
            experiment = _experiment(client, settings.experiment, _artifact_location(uri, output))
            found = _continued(client, run_id) if run_id else None
            if found is None:
                name = name or settings.run_name or f"{_last_part(output)}-{digest[:8]}"
                tags = {"idc_ray.digest": digest, "idc_ray.output": redact(output)}
                tags |= {} if parent is None else {"mlflow.parentRunId": parent}
                found = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        except Exception as error:
            raise BadRequest(
                f"MLflow at {redact(uri)} cannot be used: {redact_within(str(error))}; "
                "set --mlflow.tracking-uri, or give --no-mlflow.enabled"
            ) from None  # the cause quotes the URI with its credentials
        return cls(client, found)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings; nested mappings get dotted names.

        MLflow's params never change, so on a resume one with another value becomes the tag ``resumed.NAME``.
        """
        texts = {name: _text(value) for name, value in flat(params).items()}
        self._attempt("params", lambda client: self._send_params(client, texts))

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record ``values`` at ``step`` (images done). Buffered; sent every few hundred values or seconds.

        Names may come from folders: a character that MLflow refuses becomes an underscore.
        """
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._metrics += [Metric(_allowed(name), float(value), now, step) for name, value in values.items()]
        if len(self._metrics) >= FLUSH_METRICS or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what is buffered."""
        if self._metrics and not self._attempt("metrics", self._send_metrics):
            del self._metrics[:-KEPT_METRICS]

    def log_artifact(self, content: Path | bytes | str, name: str) -> None:
        """Store a file's content, bytes or text under ``name``, such as ``gallery.png``."""

        def send(client: MlflowClient) -> None:
            data = content.read_bytes() if isinstance(content, Path) else content
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, name)
                path.write_bytes(data.encode() if isinstance(data, str) else data)
                client.log_artifact(self.run_id, str(path))

        self._attempt(name, send)

    def log_folder(self, folder: Path, name: str) -> None:
        """Store the files of a folder under ``name``."""
        self._attempt(name, lambda client: client.log_artifacts(self.run_id, str(folder), name))

    def log_input_dataset(self, uri: str, digest: str, images: int) -> None:
        """Record what the run reads. Recording the same one again, on a resume, changes nothing.

        Args:
            uri: the input as given.
            digest: names the content; at most 36 characters.
            images: how many it holds.
        """

        def send(client: MlflowClient) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            name = _last_part(uri) or uri
            source, profile = json.dumps({"uri": redact(uri)}), json.dumps({"images": images})
            dataset = Dataset(
                name[-500:], digest[:36], "local" if _local_folder(uri) else "uri", source, profile=profile
            )
            client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "condensation")])])

        self._attempt("the input", send)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Send buffered values and close the run, also if sending fails."""
        self._silent_until = 0.0  # the last chance
        self.flush()
        self._silent_until = 0.0
        self._attempt("the end", lambda client: client.set_terminated(self.run_id, status))
        self._ended.close()

    def _end_by_force(self) -> None:
        """End the run, so that it is not shown as running; called in another thread, so buffered values are dropped."""
        with contextlib.suppress(Exception):
            if self._client is not None:
                self._client.set_terminated(self.run_id, "KILLED")

    def _send_metrics(self, client: MlflowClient) -> None:
        self._flushed_at = time.monotonic()
        while self._metrics:
            client.log_batch(self.run_id, metrics=self._metrics[:FLUSH_METRICS])
            del self._metrics[:FLUSH_METRICS]  # only what has arrived

    def _send_params(self, client: MlflowClient, params: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        known = client.get_run(self.run_id).data.params
        new = [Param(name, text) for name, text in params.items() if name not in known]
        changed = [RunTag(f"resumed.{name}", text) for name, text in params.items() if known.get(name, text) != text]
        for start in range(0, len(new), MAX_PARAMS):
            client.log_batch(self.run_id, params=new[start : start + MAX_PARAMS])
        for start in range(0, len(changed), MAX_PARAMS):
            client.log_batch(self.run_id, tags=changed[start : start + MAX_PARAMS])

    def _attempt(self, what: str, send: Callable[[MlflowClient], None]) -> bool:
        """Whether ``send`` succeeded; a failure is logged once and never raised."""
        if self._client is None or time.monotonic() < self._silent_until:
            return False
        try:
            send(self._client)
        except Exception as error:  # whatever a server, a network or a database can do
            self._silent_until = time.monotonic() + RETRY_SECONDS
            if not self._warned:
                log.warning(
                    "MLflow failed to store %s (%s); the job continues without it and retries later",
                    what,
                    redact_within(str(error)),
                )
            self._warned = True
            return False
        self._warned = False  # it came back: should it go again, that is news
        return True


def _last_part(uri: str) -> str:
    return redact(uri).partition("?")[0].rstrip("/").rpartition("/")[2]


def _local_folder(uri: str) -> Path | None:
    """An absolute path, or None for anything with another scheme than file."""
    if "://" not in uri:
        return Path(os.path.abspath(os.path.expanduser(uri)))  # as the store finds it
    parts = urlparse(uri)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def _database_uri(folder: Path) -> str:
    # Absolute, because a submitted job runs in a temporary copy of its folder. Only what a URL cannot hold is quoted:
    # SQLAlchemy undoes it, but MLflow first makes the folder that the quoted name spells.
    return f"sqlite:///{str(folder).replace('%', '%25').replace('?', '%3F')}/mlflow.db"


def _artifact_location(uri: str, output: str) -> str | None:
    """Beside our own database; a server has its own place. MLflow's default would be the working directory."""
    folder = _local_folder(output)
    if folder is None or uri != _database_uri(folder):
        return None
    return (folder / "mlflow_artifacts").as_uri()


def _import_client() -> type[MlflowClient]:
    """Here, because the import takes seconds, and reads the environment; what the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a job's log is no place for bars
    # By default an absent server blocks every call for minutes. The job is worth more than its metrics.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    utils._logger.setLevel(logging.WARNING)  # a screen of migrations for a new database
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient


def _experiment(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise ValueError(f"experiment {name!r} is deleted; restore it, or choose another --mlflow.experiment")
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location))
    except Exception:
        found = client.get_experiment_by_name(name)  # another job was faster
        if found is None:
            raise
        return str(found.experiment_id)


def _continued(client: MlflowClient, run_id: str) -> str | None:
    try:
        stage = client.get_run(run_id).info.lifecycle_stage
    except Exception as error:
        stage = str(error)
    if stage != "active":
        log.warning("MLflow's run %s cannot be continued (%s); starting a new one", run_id, redact_within(stage))
        return None
    client.update_run(run_id, status="RUNNING")
    return run_id


def _allowed(name: str) -> str:
    return re.sub(r"[^\w./: -]", "_", name)


def _text(value: object) -> str:
    """A setting as MLflow stores it."""
    return printable(redact(value) if isinstance(value, str) else redact_within(str(value)))[:MAX_TEXT]
