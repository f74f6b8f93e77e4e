"""Worker of the training job, in any process; without Ray."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from idc_ray.config.train import TrainConfig
from idc_ray.cpus import usable_cpus
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import encode_png
from idc_ray.models import Upscaler, load_upscaler
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.data import fits_in_memory, labelled, open_sources, resident_patches, training_pairs
from idc_ray.training.device import set_up_training
from idc_ray.training.fit import Event, Fit, World
from idc_ray.training.pairs import Feed
from idc_ray.training.sources import Source
from idc_ray.training.state import TrainRecord, read_record, update_record
from idc_ray.training.stream import StreamFeed
from idc_ray.training.validation import validation_pairs


@dataclass(frozen=True)
class TrainJob:
    """Arguments of every worker.

    Attributes:
        config: the settings.
        storage: the output.
        labels: checkpoint of the network that makes the labels; None: real labels.
        notes: JSON values for the checkpoints, on where the weights come from.
    """

    config: TrainConfig
    storage: StorageFolder
    labels: bytes | None
    notes: dict[str, Any]


def train_worker(job: TrainJob, world: World, report: Callable[[Event], None], local_workers: int = 1) -> None:
    """Train to the end.

    Args:
        job: the job.
        world: the workers, and which of them this is.
        report: called with each event.
        local_workers: number of workers on this machine, which share its CPUs and memory.

    Raises:
        IdcError: an error that a retry would not fix.
    """
    set_up_training(job.config.workers.threads or max(1, usable_cpus() // local_workers))
    record = _record(job)

    def reporting(event: Event) -> None:
        if event["kind"] == "validation":
            event = {**event, "pictures": [encode_png(picture) for picture in event["pictures"]]}
        report(event)

    sources = open_sources(job.config)
    validation = validation_pairs(job.config, sources)
    feed = _feed(job, sources, world.device, _resident(job, record, sources, world, local_workers))
    labeler = _labeler(job, world.device)
    Fit(job.config, feed, validation, job.storage, reporting, job.notes, world, labeler=labeler).run()


def _record(job: TrainJob) -> TrainRecord:
    """The record that the driver stored; a worker that does not see it has no access to the output."""
    record = read_record(job.storage)
    if record is None or record.digest != job.notes["digest"]:
        raise BadRequest(
            f"a worker on {platform.node()} does not find the driver's files in {job.storage.uri}; give an --output "
            "that all machines can access: a shared file system, or an object store such as s3://BUCKET/FOLDER"
        )
    return record


def _feed(job: TrainJob, sources: list[Source], device: torch.device, resident: bool) -> Feed:
    if resident:
        sources = labelled(job.config, sources, job.labels, device)
        return resident_patches(job.config, training_pairs(job.config, sources), device)
    # Windows are labelled on the CPU, as another thread must not use the GPU while a CUDA graph is captured.
    return StreamFeed(job.config, labelled(job.config, sources, job.labels, torch.device("cpu")), device)


def _labeler(job: TrainJob, device: torch.device) -> Upscaler | None:
    """The network of online labels; None without."""
    if job.config.labels == "stored" or job.labels is None:
        return None
    return load_upscaler(job.labels, scale=job.config.scale, device=device, name=job.config.labels_from)


def _resident(job: TrainJob, record: TrainRecord, sources: list[Source], world: World, local_workers: int) -> bool:
    """Whether the data stays in memory: as recorded, otherwise if it fits on all workers.

    The decision is recorded, as streaming gives other patches and the free memory can differ in the next attempt.
    """
    if record.resident is not None and job.config.resident_bytes is None:
        return record.resident
    fits = torch.tensor([float(fits_in_memory(job.config, sources, world.device, local_workers))], device=world.device)
    if world.size > 1:
        torch.distributed.all_reduce(fits, torch.distributed.ReduceOp.MIN)
    if world.rank == 0:
        update_record(job.storage, resident=bool(fits))
    return bool(fits)


def gave_up(job: TrainJob, reason: str) -> IdcError:
    """The error of a training whose workers died too often.

    Args:
        job: the job.
        reason: why the last attempt failed.
    """
    without = ", without --overwrite" if job.config.overwrite else ""
    return IdcError(
        f"training stopped after {job.config.workers.max_failures + 1} attempts ({reason}); the last state is kept, "
        f"and the same command{without} continues"
    )
