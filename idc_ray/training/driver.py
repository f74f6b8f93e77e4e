"""The training job: a driver that tracks and reports, and one or several workers that compute."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import ray
import torch

from idc_ray.config.train import TrainConfig
from idc_ray.images.names import read_bytes
from idc_ray.lifecycle import fail_run_on_error, locked_output, print_plan, ray_cluster
from idc_ray.locate import absolute, holds, locate
from idc_ray.models import bundled_teacher_bytes, teacher_sha256
from idc_ray.pipeline.progress import Heartbeat, Show
from idc_ray.results import TrainResult
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.tracking import Tracker, tracking_uri
from idc_ray.training.curves import Curves
from idc_ray.training.data import labelled, open_sources
from idc_ray.training.dry_run import estimate
from idc_ray.training.fit import Event, new_model, start_sha256, with_absolute_start
from idc_ray.training.local_worker import LocalWorker, check_machine
from idc_ray.training.mlflow_model import save_mlflow_model
from idc_ray.training.progress import TrainProgress
from idc_ray.training.sources import Source
from idc_ray.training.state import (
    BEST,
    LAST,
    SavedState,
    TrainRecord,
    begin_training,
    check_output,
    read_state,
    update_record,
)
from idc_ray.training.validation import validation_pairs
from idc_ray.training.worker import TrainJob

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ready:
    """What a training needs, checked before anything is written."""

    config: TrainConfig
    labels: bytes | None
    sources: list[Source]
    storage: StorageFolder
    record: TrainRecord


def train(config: TrainConfig) -> int:
    """The command: :func:`run_train`, or an estimate.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_train`.
    """
    if print_plan(config, lambda photographs: _estimate(_prepare(config))):
        trained = run_train(config, "lines")
        if trained.best_psnr is not None:
            print(f"best {trained.best_psnr:.2f} dB at step {trained.best_step}: {trained.checkpoint}")
        print(f"{trained.num_steps} steps: {trained.last}")
    return 0


def run_train(config: TrainConfig, show: Show = "log") -> TrainResult:
    """Train a network; the same call again continues it, or confirms that it is finished.

    Args:
        config: the settings; ``dry_run`` is ignored.
        show: where progress is shown.

    Raises:
        BadRequest: an error in settings, data or networks.
        Locked: another process works on the output.
        Interrupted: SIGINT or SIGTERM.
        IdcError: any other error that a user can fix.
    """
    ready = _prepare(config)
    config, storage = ready.config, ready.storage
    with locked_output(storage), contextlib.ExitStack() as stack:
        record = begin_training(storage, ready.record, config.overwrite)
        state = read_state(storage, with_tensors=False)
        finished = state is not None and state.step >= config.iterations
        if state is not None and finished and record.tracked:
            return _result(storage, config.iterations, state)
        worker = None
        if not finished and _is_local(config):
            check_machine(config.workers)
            worker = stack.enter_context(LocalWorker())  # it imports torch while the tracked run begins
        tracker = _begin_tracking(config, storage, record)
        with fail_run_on_error(tracker):
            if not finished:
                curves = Curves(storage, fresh=state is None)
                _run(_job(ready, record), worker, tracker, curves, show)
            state = read_state(storage, with_tensors=False)
            assert state is not None
            with Heartbeat("logging the network to MLflow"):
                _track_networks(tracker, storage)
                tracker.finish("FINISHED")
        update_record(storage, tracked=True)  # last: killed before, the same command does the rest
        return _result(storage, state.step, state)


def _job(ready: _Ready, record: TrainRecord) -> TrainJob:
    config = ready.config
    notes = {"data": record.data, "digest": record.digest, "iterations": config.iterations, "seed": config.seed}
    return TrainJob(config, ready.storage, ready.labels, notes)


def _result(storage: StorageFolder, steps: int, state: SavedState) -> TrainResult:
    last = storage.shown(LAST)
    best = last if state.best_psnr is None else storage.shown(BEST)
    return TrainResult(storage.uri, steps, state.best_psnr, state.best_step, best, last)


def _prepare(config: TrainConfig) -> _Ready:
    """Check data, network and validation, so that errors are raised here, not by a worker minutes later."""
    config = _with_absolute_paths(config)
    _warn_of_validation(config)
    labels = _labelling_network(config)
    with Heartbeat("listing the data and checking network and validation"):
        sources = open_sources(config)
        labelled(config, sources, labels, torch.device("cpu"))
        new_model(config)
        if config.validation.images is not None:
            one = config.validation.model_copy(update={"max_images": 1})
            validation_pairs(config.model_copy(update={"validation": one}), [])
    for source in sources:
        log.info("training on %s", source.describe())
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)
    content = (
        "+".join(source.digest for source in sources),
        None if labels is None else teacher_sha256(labels),
        start_sha256(config),
    )
    record = TrainRecord(
        config.model_dump(mode="json"),
        config.digest(*content),
        [source.describe() for source in sources],
        datetime.now(UTC).isoformat(timespec="seconds"),
        family=config.digest(*content, with_iterations=False),
    )
    return _Ready(config, labels, sources, resolve(config.output), record)


def _estimate(ready: _Ready) -> str:
    continued = check_output(ready.storage, ready.record, ready.config.overwrite)
    state = None if continued is None else read_state(ready.storage, with_tensors=False)
    with Heartbeat("reading a few images and timing a few steps"):
        return estimate(ready.config, ready.sources, 0 if state is None else state.step)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Paths that are also valid in workers: Ray Train starts each in its own folder."""
    images = config.validation.images
    named = {"images": None if images is None else absolute(images)}
    update = {
        "data": tuple(map(absolute, config.data)),
        "output": absolute(config.output),  # where it lies in the data, it is left out of that
        "validation": config.validation.model_copy(update=named),
    }
    return with_absolute_start(config.model_copy(update=update))


def _labelling_network(config: TrainConfig) -> bytes | None:
    """The checkpoint's bytes; a file called ``bundled`` is given as ``./bundled``."""
    if config.labels_from is None:
        return None
    if config.labels_from == "bundled":
        return bundled_teacher_bytes(config.scale, "--labels-from")
    return read_bytes(config.labels_from, "--labels-from")


def _warn_of_validation(config: TrainConfig) -> None:
    images = config.validation.images
    if images is not None and config.validation.fraction:
        log.warning(
            "--validation.fraction %s holds nothing out: --validation.images names what to validate on",
            config.validation.fraction,
        )
    for data in config.data:
        if images is not None and holds(locate(data), locate(images)):
            log.warning(
                "%s is used for validation and lies in the training data %s: validation PSNR is too optimistic",
                images,
                data,
            )


def _begin_tracking(config: TrainConfig, storage: StorageFolder, record: TrainRecord) -> Tracker:
    with Heartbeat("starting the MLflow run"):
        tracker = Tracker.start(config.mlflow, config.output, record.digest, record.mlflow_run_id)
    if tracker.run_id != record.mlflow_run_id:
        update_record(storage, mlflow_run_id=tracker.run_id)
    tracker.log_params(config.model_dump(mode="json"))
    tracker.log_artifact(config.to_yaml(), "config.yaml")
    return tracker


def _track_networks(tracker: Tracker, storage: StorageFolder) -> None:
    """The checkpoints, and as an MLflow model the best network, or the last without validation."""
    checkpoints = {name: data for name in (BEST, LAST) if (data := storage.read(name)) is not None}
    for name, data in checkpoints.items():
        tracker.log_artifact(data, name)
    if tracker.run_id is None or not checkpoints:
        return
    with tempfile.TemporaryDirectory() as scratch:
        save_mlflow_model(next(iter(checkpoints.values())), Path(scratch))
        tracker.log_folder(Path(scratch, "model"), "model")


def _run(job: TrainJob, worker: LocalWorker | None, tracker: Tracker, curves: Curves, show: Show) -> None:
    """Train: in a process on this machine where that is enough, else by Ray Train, which takes longer to start."""
    if worker is not None:
        _follow(worker.train(job), job.config, show, tracker, curves)
        return
    from idc_ray.pipeline.cluster import join  # here: these take a second to import
    from idc_ray.training.ray_workers import ray_events

    workers = job.config.workers

    def join_cluster() -> None:
        join(
            workers.ray_address,
            worker_output=False,  # events and exceptions say it; Ray Train's own output would bury them
            needs={"CPU": workers.count * workers.cpus, "GPU": workers.count * (workers.gpus or 0.0)},
            fix=f"lower --workers.count ({workers.count}), --workers.cpus or --workers.gpus",
        )

    with ray_cluster(join_cluster):
        _follow(ray_events(job), job.config, show, tracker, curves)


def _is_local(config: TrainConfig) -> bool:
    """Whether one process on this machine is enough."""
    cluster = config.workers.ray_address or os.environ.get("RAY_ADDRESS") or ray.is_initialized()
    return config.workers.count == 1 and not cluster


def _follow(events: Iterator[Event | None], config: TrainConfig, show: Show, tracker: Tracker, curves: Curves) -> None:
    """Show, record and track what the workers report until they end."""
    progress = TrainProgress(config.iterations, show=show)
    try:
        for event in events:
            if event is None:
                progress.tick()
            else:
                progress.update(event)
                curves.report(event)
                _track(tracker, event)
    finally:
        progress.close()
        curves.write()


def _track(tracker: Tracker, event: Event) -> None:
    step = event.get("step", 0)
    numbers = {k: v for k, v in event.items() if isinstance(v, int | float) and k != "step"}
    if event["kind"] == "validation":
        tracker.log_metrics(step, {"validation_psnr": event["psnr"]})
        for index, png in enumerate(event["pictures"]):
            tracker.log_artifact(png, f"validation_{index}.png")
    elif event["kind"] == "progress":
        tracker.log_metrics(step, numbers)
