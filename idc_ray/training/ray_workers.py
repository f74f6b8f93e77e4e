"""Training with Ray Train: with several workers, or on a cluster."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.nn.parallel import DistributedDataParallel

from idc_ray.config.train import Workers
from idc_ray.errors import IdcError
from idc_ray.interrupt import check_interrupted
from idc_ray.pipeline.waiting import log_until_first
from idc_ray.training.fit import Event, World
from idc_ray.training.worker import TrainJob, gave_up, train_worker

#: Time for workers to end by themselves after an error of one.
LEAVE_SECONDS = 20.0


def ray_events(job: TrainJob) -> Iterator[Event | None]:
    """Train on the connected cluster; yields the workers' events, and None at intervals without events.

    Args:
        job: the job.

    Raises:
        IdcError: an error that a retry would not fix, or workers died too often.
    """
    # On this machine, so that the loss of another node does not end the training.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = _trainer(job, queue)
    outcome: list[BaseException | None] = []

    def run() -> None:
        try:
            trainer.fit()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    # In a thread, as this one shows progress and handles signals, which Ray Train would ignore.
    thread = threading.Thread(target=run, name="ray train", daemon=True)
    thread.start()
    try:
        arriving = _events(queue, lambda: bool(outcome))
        for event in log_until_first(arriving, "no step is reported", lambda: _awaited(job.config.workers)):
            if event is not None and event["kind"] == "error":
                thread.join(LEAVE_SECONDS)  # with a limit, as other workers may wait for the failed one
                raise event["error"]
            yield event
    finally:
        queue.shutdown(force=True)
    if outcome[0] is not None:
        raise gave_up(job, f"{_first_line(outcome[0])}; see the logs in Ray's session folder") from outcome[0]


def _events(queue: Queue, ended: Callable[[], bool]) -> Iterator[Event | None]:
    """Events until the training has ended; None at intervals without events."""
    while True:
        check_interrupted()
        over = ended()
        try:
            yield queue.get(timeout=0.5)
        except Empty:
            if over:
                return
            yield None


def _awaited(workers: Workers) -> str:
    """Requested and free resources: ``2 workers take 1 CPU each; free are 0 of 1 CPU; ...``."""
    each = {"CPU": workers.cpus, "GPU": workers.gpus or 0.0}
    total, free = ray.cluster_resources(), ray.available_resources()
    one = " and ".join(f"{amount:g} {name}" for name, amount in each.items() if amount)
    available = ", ".join(
        f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}" for name, amount in each.items() if amount
    )
    return f"{workers.count} workers take {one} each; free are {available}"


def _trainer(job: TrainJob, queue: Queue) -> TorchTrainer:
    workers = job.config.workers
    gpus = workers.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= workers.count else 0.0
    resources = {"CPU": workers.cpus, **({"GPU": gpus} if gpus else {})}
    name = f"idc_ray_{uuid.uuid4().hex[:8]}"
    return TorchTrainer(
        _run_worker,
        train_loop_config={"job": job, "queue": queue},
        scaling_config=ScalingConfig(num_workers=workers.count, use_gpu=gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(name=name, failure_config=FailureConfig(max_failures=workers.max_failures)),
    )


def _run_worker(arguments: dict[str, Any]) -> None:
    """Training function of a Ray Train worker."""
    job: TrainJob = arguments["job"]
    queue: Queue = arguments["queue"]
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    size = context.get_world_size()
    world = World(
        context.get_world_rank(),
        size,
        device,
        (lambda m: DistributedDataParallel(m, broadcast_buffers=False)) if size > 1 else (lambda m: m),
    )
    try:
        train_worker(job, world, queue.put, context.get_local_world_size())
    except IdcError as error:  # not raised, as a retry would not help
        queue.put({"kind": "error", "error": error})


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
