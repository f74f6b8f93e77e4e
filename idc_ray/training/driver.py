"""The training job on Ray Train: one driver that tracks and shows, one or several workers that compute."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
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
from torch.nn.parallel import DistributedDataParallel

from idc_ray.config.train import TrainConfig
from idc_ray.errors import IdcError
from idc_ray.images import encode_png
from idc_ray.images.locate import read_bytes
from idc_ray.interrupt import check_interrupted
from idc_ray.models import teacher_sha256
from idc_ray.pipeline.cluster import join
from idc_ray.store import holder_text
from idc_ray.store.filesystem import Place, resolve
from idc_ray.store.lock import lock
from idc_ray.tracking import Tracker, tracking_uri
from idc_ray.training.data import fits_in_memory, open_sources, resident_patches
from idc_ray.training.fit import Event, World, fit, student_spec
from idc_ray.training.mlflow_model import save_mlflow_model
from idc_ray.training.pairs import Feed
from idc_ray.training.progress import TrainProgress
from idc_ray.training.state import BEST, LAST, TrainRecord, begin_training, read_state, update_record
from idc_ray.training.stream import StreamFeed, stream_of
from idc_ray.training.validation import validation_pairs

__all__ = ["train"]

log = logging.getLogger(__name__)

CONTINUE = "the last state is kept; the same command continues"

#: How long workers have to leave by themselves after an error of one.
LEAVE_SECONDS = 20.0


@dataclass(frozen=True)
class _Job:
    """Sent to every worker."""

    config: TrainConfig
    place: Place
    labels: bytes | None
    notes: dict[str, Any]
    events: Queue


def train(config: TrainConfig) -> int:
    """Train a network; the same call again continues it, or confirms that it is finished.

    Returns:
        The exit code: 0.

    Raises:
        BadRequest: what was asked for cannot be done.
        Locked: another process works on the output.
        Interrupted: SIGINT or SIGTERM.
        IdcError: anything else that a user can mend.
    """
    print(config.to_yaml(), flush=True)
    labels = None if config.labels_from is None else read_bytes(config.labels_from, "--labels-from")
    sources = open_sources(config, None, torch.device("cpu"))
    student_spec(config).build()  # what is wrong with the model is told here, not by a worker minutes later
    for source in sources:
        log.info("training on %s", source.describe())
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)
    place = resolve(config.output)
    place.check_writable()
    digest = config.digest(
        "+".join(source.digest for source in sources), None if labels is None else teacher_sha256(labels)
    )
    record = TrainRecord(
        config.model_dump(mode="json"),
        digest,
        [source.describe() for source in sources],
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with lock(place, holder_text()):
        record = begin_training(place, record, config.overwrite)
        state = read_state(place)
        if state is not None and state.finished:
            print(_summary(place, state.best_psnr, state.best_step, config.iterations))
            return 0
        notes = {"data": record.data, "digest": digest, "iterations": config.iterations, "seed": config.seed}
        return _tracked(config, place, record, labels, notes)


def _tracked(
    config: TrainConfig, place: Place, record: TrainRecord, labels: bytes | None, notes: dict[str, Any]
) -> int:
    tracker = Tracker.start(config.mlflow, config.output, record.digest, record.mlflow_run_id)
    if tracker.run_id != record.mlflow_run_id:
        update_record(place, record, mlflow_run_id=tracker.run_id)
    tracker.log_params(config.model_dump(mode="json"))
    tracker.log_artifact(config.to_yaml(), "config.yaml")
    try:
        _run_on_ray(config, place, labels, notes, tracker)
    except BaseException as error:
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    state = read_state(place)
    assert state is not None
    for name in (BEST, LAST):
        data = place.read(name)
        if data is not None:
            tracker.log_artifact(data, name)
    _log_model(tracker, place)
    tracker.finish("FINISHED")
    print(_summary(place, state.best_psnr, state.best_step, state.step))
    return 0


def _log_model(tracker: Tracker, place: Place) -> None:
    """The best network, or the last without validation."""
    checkpoint = place.read(BEST) or place.read(LAST)
    if tracker.run_id is None or checkpoint is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        save_mlflow_model(checkpoint, Path(scratch))
        tracker.log_folder(Path(scratch, "model"), "model")


def _summary(place: Place, psnr: float | None, step: int | None, steps: int) -> str:
    best = f"best {psnr:.2f} dB at step {step}: {place.shown(BEST)}\n" if psnr is not None else ""
    return f"{best}{steps} steps: {place.shown(LAST)}"


def _run_on_ray(
    config: TrainConfig, place: Place, labels: bytes | None, notes: dict[str, Any], tracker: Tracker
) -> None:
    ours = not ray.is_initialized()
    # What the workers have to say comes as events and exceptions; Ray Train's own chatter would bury it.
    join(config.workers.ray_address, worker_output=False, spare_cpus=1)  # else readers wait for the workers' CPUs
    try:
        _follow(config, place, labels, notes, tracker)
    finally:
        if ours:
            ray.shutdown()


def _follow(config: TrainConfig, place: Place, labels: bytes | None, notes: dict[str, Any], tracker: Tracker) -> None:
    """Start the workers, and take what they tell until they end."""
    events = Queue(actor_options={"num_cpus": 0})
    job = _Job(config, place, labels, notes, events)
    trainer = _trainer(job)
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
    progress = TrainProgress(config.iterations)
    failure: IdcError | None = None
    try:
        for event in _events(events, lambda: bool(outcome)):
            if event["kind"] == "error":
                failure = event["error"]
                thread.join(LEAVE_SECONDS)  # not for ever: other workers may wait for the one that failed
                break
            progress.update(event)
            _track(tracker, event)
    finally:
        progress.close()
        events.shutdown(force=True)
    if failure is not None:
        raise failure
    if outcome[0] is not None:
        raise IdcError(
            f"training stopped after {config.workers.max_failures + 1} attempts ({_first_line(outcome[0])}); "
            f"see the logs in Ray's session folder; {CONTINUE}"
        ) from outcome[0]


def _events(queue: Queue, ended: Any) -> Iterator[Event]:
    """Events until the training has ended and none is left."""
    while True:
        check_interrupted()
        over = ended()
        try:
            yield queue.get(timeout=0.5)
        except Empty:
            if over:
                return


def _track(tracker: Tracker, event: Event) -> None:
    step = event.get("step", 0)
    numbers = {k: v for k, v in event.items() if isinstance(v, int | float) and k != "step"}
    if event["kind"] == "validation":
        tracker.log_metrics(step, {"validation_psnr": event["psnr"]})
        for index, png in enumerate(event["pictures"]):
            tracker.log_artifact(png, f"validation_{index}.png")
    elif event["kind"] == "progress":
        tracker.log_metrics(step, numbers)


def _trainer(job: _Job) -> TorchTrainer:
    workers = job.config.workers
    gpus = workers.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= workers.count else 0.0
    resources = {"CPU": workers.cpus, **({"GPU": gpus} if gpus else {})}
    name = f"idc_ray_{uuid.uuid4().hex[:8]}"
    return TorchTrainer(
        _work,
        train_loop_config={"job": job},
        datasets={"train": stream_of(job.config, job.labels)},
        scaling_config=ScalingConfig(num_workers=workers.count, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(name=name, failure_config=FailureConfig(max_failures=workers.max_failures)),
    )


def _work(arguments: dict[str, Any]) -> None:
    """What each worker does."""
    job: _Job = arguments["job"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    _set_up_torch(job.config, context.get_local_world_size())

    def tell(event: Event) -> None:
        if event["kind"] == "validation":
            event = {**event, "pictures": [encode_png(picture) for picture in event["pictures"]]}
        job.events.put(event)

    try:
        feed, validation = _data(job, device)
        world = World(
            rank,
            size,
            device,
            (lambda m: DistributedDataParallel(m, broadcast_buffers=False)) if size > 1 else (lambda m: m),
        )
        fit(job.config, feed, validation, job.place, tell, job.notes, world)
    except IdcError as error:  # to try again would not help
        job.events.put({"kind": "error", "error": error})


def _data(job: _Job, device: torch.device) -> tuple[Feed, list[Any]]:
    config = job.config
    real = open_sources(config, None, device)  # whatever a student learns from, it is judged by the truth
    validation = validation_pairs(config.validation, real, config.scale, config.seed, config.max_pixels)
    sources = open_sources(config, job.labels, device)
    if fits_in_memory(config, sources, device):
        return resident_patches(config, sources, device), validation
    return StreamFeed(config, ray.train.get_dataset_shard("train"), device), validation


def _set_up_torch(config: TrainConfig, local_workers: int) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(config.workers.threads or max(1, (os.cpu_count() or 1) // local_workers))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
