"""The training job on Ray Train: one driver that tracks and shows, one or several workers that compute."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from idc_ray.config.train import TrainConfig, Workers
from idc_ray.errors import IdcError
from idc_ray.images.locate import absolute, holds, locate, read_bytes
from idc_ray.interrupt import check_interrupted
from idc_ray.models import bundled_teacher_bytes, teacher_sha256
from idc_ray.pipeline.cluster import join
from idc_ray.pipeline.progress import LOG_SECONDS, Heartbeat, Show, duration, mark_told, seconds_silent
from idc_ray.store import holder_text
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.lock import lock
from idc_ray.tracking import Tracker, tracking_uri
from idc_ray.training.curves import Curves
from idc_ray.training.data import may_stream, open_sources
from idc_ray.training.dry_run import estimate
from idc_ray.training.fit import Event, new_model, start_sha256, with_absolute_start
from idc_ray.training.mlflow_model import save_mlflow_model
from idc_ray.training.progress import TrainProgress
from idc_ray.training.sources import Source
from idc_ray.training.state import BEST, LAST, TrainRecord, begin_training, check_output, read_state, update_record
from idc_ray.training.stream import stream_of
from idc_ray.training.validation import validation_pairs
from idc_ray.training.worker import TrainJob, run_worker

__all__ = ["Trained", "run_train", "train"]

log = logging.getLogger(__name__)

CONTINUE = "the last state is kept; the same command continues"

#: How long workers have to leave by themselves after an error of one.
LEAVE_SECONDS = 20.0


@dataclass(frozen=True)
class Trained:
    """A training that has come to its end.

    Attributes:
        storage: its output, which has ``last.safetensors``, and ``best.safetensors`` if it was validated.
        steps: steps done.
        best_psnr: highest PSNR on the validation images, dB; None without validation.
        best_step: after how many steps.
    """

    storage: StorageFolder
    steps: int
    best_psnr: float | None
    best_step: int | None

    def format(self) -> str:
        """For a person: the checkpoints, and what they are."""
        best = ""
        if self.best_psnr is not None:
            best = f"best {self.best_psnr:.2f} dB at step {self.best_step}: {self.storage.shown(BEST)}\n"
        return f"{best}{self.steps} steps: {self.storage.shown(LAST)}"


@dataclass(frozen=True)
class _Ready:
    """What was found before anything is written."""

    config: TrainConfig
    labels: bytes | None
    sources: list[Source]
    storage: StorageFolder
    record: TrainRecord


def train(config: TrainConfig) -> int:
    """The command: :func:`run_train` between its settings and its checkpoints, printed; or an estimate.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_train`.
    """
    print(config.to_yaml(), flush=True)
    print(_estimate(_prepare(config)) if config.dry_run else run_train(config, "lines").format())
    return 0


def run_train(config: TrainConfig, show: Show = "log") -> Trained:
    """Train a network; the same call again continues it, or confirms that it is finished.

    Args:
        config: the settings; ``dry_run`` is not looked at.
        show: where progress is shown.

    Raises:
        BadRequest: what was asked for cannot be done.
        Locked: another process works on the output.
        Interrupted: SIGINT or SIGTERM.
        IdcError: anything else that a user can mend.
    """
    ready = _prepare(config)
    config, storage = ready.config, ready.storage
    storage.check_writable()
    with lock(storage, holder_text()):
        record = begin_training(storage, ready.record, config.overwrite)
        state = read_state(storage)
        finished = state is not None and state.step >= config.iterations
        if state is not None and finished and record.tracked:
            return Trained(storage, config.iterations, state.best_psnr, state.best_step)
        notes = {"data": record.data, "digest": record.digest, "iterations": config.iterations, "seed": config.seed}
        with Heartbeat("reading a few images for their sizes"):
            may = may_stream(config, ready.sources, record.resident)
            work = _Work(ready.labels, notes, may, show, Curves(storage, fresh=state is None))
        return _tracked(config, storage, record, None if finished else work)


def _prepare(config: TrainConfig) -> _Ready:
    """What is wrong with data, network or validation is told here, not by a worker minutes later."""
    config = _with_absolute_paths(config)
    _warn_of_validation(config)
    labels = _labelling_network(config)
    with Heartbeat("listing the data and checking network and validation"):
        sources = open_sources(config, labels, torch.device("cpu"))
        new_model(config)
        if config.validation.images is not None:
            one = config.validation.model_copy(update={"max_images": 1})
            validation_pairs(one, [], config.scale, config.seed, config.max_pixels, config.output)
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
    state = None if continued is None else read_state(ready.storage)
    with Heartbeat("reading a few images and timing a few steps"):
        return estimate(ready.config, ready.sources, 0 if state is None else state.step)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """What workers read, named as they find it too: Ray Train starts each in a folder of its own."""
    images = config.validation.images
    named = {"images": None if images is None else absolute(images)}
    update = {
        "data": tuple(map(absolute, config.data)),
        "output": absolute(config.output),  # where it lies in the data, it is left out of that
        "validation": config.validation.model_copy(update=named),
    }
    return with_absolute_start(config.model_copy(update=update))


def _labelling_network(config: TrainConfig) -> bytes | None:
    """The file; for one of the very name ``bundled`` write ``./bundled``."""
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
            log.warning("%s is validated on, and trained on with %s: the best checkpoint fits it most", images, data)


@dataclass(frozen=True)
class _Work:
    """What there is to train, and where progress is shown."""

    labels: bytes | None
    notes: dict[str, Any]
    may_stream: bool
    show: Show
    curves: Curves


def _tracked(config: TrainConfig, storage: StorageFolder, record: TrainRecord, work: _Work | None) -> Trained:
    """Train what is left, if anything, and tell the tracked run what came of it."""
    with Heartbeat("starting the MLflow run"):
        tracker = Tracker.start(config.mlflow, config.output, record.digest, record.mlflow_run_id)
    if tracker.run_id != record.mlflow_run_id:
        update_record(storage, mlflow_run_id=tracker.run_id)
    tracker.log_params(config.model_dump(mode="json"))
    tracker.log_artifact(config.to_yaml(), "config.yaml")
    try:
        if work is not None:
            _run_on_ray(config, storage, work, tracker)
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    state = read_state(storage)
    assert state is not None
    with Heartbeat("logging the network to MLflow"):
        for name in (BEST, LAST):
            data = storage.read(name)
            if data is not None:
                tracker.log_artifact(data, name)
        _log_model(tracker, storage)
        tracker.finish("FINISHED")
    update_record(storage, tracked=True)  # last: killed before, the same command does the rest
    return Trained(storage, state.step, state.best_psnr, state.best_step)


def _log_model(tracker: Tracker, storage: StorageFolder) -> None:
    """The best network, or the last without validation."""
    checkpoint = storage.read(BEST) or storage.read(LAST)
    if tracker.run_id is None or checkpoint is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        save_mlflow_model(checkpoint, Path(scratch))
        tracker.log_folder(Path(scratch, "model"), "model")


def _run_on_ray(config: TrainConfig, storage: StorageFolder, work: _Work, tracker: Tracker) -> None:
    ours = not ray.is_initialized()
    # What the workers have to say comes as events and exceptions; Ray Train's own chatter would bury it.
    workers = config.workers
    with Heartbeat("starting or joining Ray"):
        join(
            workers.ray_address,
            worker_output=False,
            spare_cpus=1,  # else readers wait for the workers' CPUs
            needs={"CPU": workers.count * workers.cpus, "GPU": workers.count * (workers.gpus or 0.0)},
            fix=f"lower --workers.count ({workers.count}), --workers.cpus or --workers.gpus",
        )
    try:
        _follow(config, storage, work, tracker)
    finally:
        if ours:
            ray.shutdown()


def _follow(config: TrainConfig, storage: StorageFolder, work: _Work, tracker: Tracker) -> None:
    """Start the workers, and take what they tell until they end."""
    # On this machine: with another one that is lost it would take the training along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    job = TrainJob(config, storage, work.labels, work.notes, events)
    trainer = _trainer(job, work.may_stream)
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            trainer.fit()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    # In a thread: this one shows what happens, and takes the signals that Ray Train would swallow.
    thread = threading.Thread(target=run, name="ray train", daemon=True)
    thread.start()
    progress = TrainProgress(config.iterations, show=work.show)
    failure: IdcError | None = None
    try:
        for event in _told_while_waiting(_events(events, lambda: bool(outcome)), config.workers):
            if event is None:
                progress.tick()
                continue
            if event["kind"] == "error":
                failure = event["error"]
                thread.join(LEAVE_SECONDS)  # not for ever: other workers may wait for the one that failed
                break
            progress.update(event)
            work.curves.report(event)
            _track(tracker, event)
    finally:
        progress.close()
        work.curves.write()
        events.shutdown(force=True)
    if failure is not None:
        raise failure
    if outcome[0] is not None:
        raise IdcError(
            f"training stopped after {config.workers.max_failures + 1} attempts ({_first_line(outcome[0])}); "
            f"see the logs in Ray's session folder; {CONTINUE}{', without --overwrite' if config.overwrite else ''}"
        ) from outcome[0]


def _events(queue: Queue, ended: Any) -> Iterator[Event | None]:
    """Events until the training has ended and none is left; None now and then while there is none."""
    while True:
        check_interrupted()
        over = ended()
        try:
            yield queue.get(timeout=0.5)
        except Empty:
            if over:
                return
            yield None


def _told_while_waiting(events: Iterator[Event | None], workers: Workers) -> Iterator[Event | None]:
    """The events from the first one on, with a line in the log now and then until that is there."""
    begin = time.monotonic()
    waiting = True
    for event in events:
        waiting = waiting and event is None
        if not waiting:
            yield event
        elif seconds_silent() > LOG_SECONDS:
            mark_told()
            log.info("no step is reported after %s; %s", duration(time.monotonic() - begin), _awaited(workers))


def _awaited(workers: Workers) -> str:
    """Such as ``2 workers take 1 CPU each; free are 0 of 1 CPU; ...``."""
    each = {"CPU": workers.cpus, "GPU": workers.gpus or 0.0}
    total, free = ray.cluster_resources(), ray.available_resources()
    one = " and ".join(f"{amount:g} {name}" for name, amount in each.items() if amount)
    room = ", ".join(
        f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name, amount in each.items() if amount
    )
    return f"{workers.count} workers take {one} each; free are {room}; streamed data takes one CPU more to be read"


def _track(tracker: Tracker, event: Event) -> None:
    step = event.get("step", 0)
    numbers = {k: v for k, v in event.items() if isinstance(v, int | float) and k != "step"}
    if event["kind"] == "validation":
        tracker.log_metrics(step, {"validation_psnr": event["psnr"]})
        for index, png in enumerate(event["pictures"]):
            tracker.log_artifact(png, f"validation_{index}.png")
    elif event["kind"] == "progress":
        tracker.log_metrics(step, numbers)


def _trainer(job: TrainJob, may_stream: bool) -> TorchTrainer:
    workers = job.config.workers
    gpus = workers.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= workers.count else 0.0
    resources = {"CPU": workers.cpus, **({"GPU": gpus} if gpus else {})}
    name = f"idc_ray_{uuid.uuid4().hex[:8]}"
    return TorchTrainer(
        run_worker,
        train_loop_config={"job": job},
        # A stream that nobody reads would still cost the start of the processes that set it up.
        datasets={"train": stream_of(job.config, job.labels)} if may_stream else {},
        scaling_config=ScalingConfig(num_workers=workers.count, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(name=name, failure_config=FailureConfig(max_failures=workers.max_failures)),
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
