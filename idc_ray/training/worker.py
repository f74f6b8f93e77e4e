"""Worker of the training job."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
import torch.distributed
from ray.util.queue import Queue
from torch.nn.parallel import DistributedDataParallel

from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import encode_png
from idc_ray.models import Upscaler, load_upscaler
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.data import fits_in_memory, labelled, open_sources, resident_patches
from idc_ray.training.device import set_up_training
from idc_ray.training.fit import Event, World, fit
from idc_ray.training.pairs import Feed
from idc_ray.training.sources import Source
from idc_ray.training.state import TrainRecord, read_record, update_record
from idc_ray.training.stream import StreamFeed
from idc_ray.training.validation import validation_pairs

__all__ = ["TrainJob", "run_worker"]


@dataclass(frozen=True)
class TrainJob:
    """Arguments of every worker."""

    config: TrainConfig
    storage: StorageFolder
    labels: bytes | None
    notes: dict[str, Any]
    events: Queue


def run_worker(arguments: dict[str, Any]) -> None:
    """Training loop of a Ray Train worker; ``arguments["job"]`` is a :class:`TrainJob`."""
    job: TrainJob = arguments["job"]
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    threads = job.config.workers.threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    set_up_training(threads)

    def report(event: Event) -> None:
        if event["kind"] == "validation":
            event = {**event, "pictures": [encode_png(picture) for picture in event["pictures"]]}
        job.events.put(event)

    try:
        feed, validation = _data(job, _record(job), device)
        world = World(
            rank,
            size,
            device,
            (lambda m: DistributedDataParallel(m, broadcast_buffers=False)) if size > 1 else (lambda m: m),
        )
        fit(job.config, feed, validation, job.storage, report, job.notes, world, labeler=_labeler(job, device))
    except IdcError as error:  # not raised, as a retry would not help
        job.events.put({"kind": "error", "error": error})


def _record(job: TrainJob) -> TrainRecord:
    """The record that the driver stored; a worker that does not see it has no access to the output."""
    record = read_record(job.storage)
    if record is None or record.digest != job.notes["digest"]:
        raise BadRequest(
            f"a worker on {platform.node()} does not find the driver's files in {job.storage.uri}; give an --output "
            "that all machines can access: a shared file system, or an object store such as s3://BUCKET/FOLDER"
        )
    return record


def _data(job: TrainJob, record: TrainRecord, device: torch.device) -> tuple[Feed, list[Any]]:
    config = job.config
    real = open_sources(config, None, device)  # validation always uses real HR images
    validation = validation_pairs(config.validation, real, config.scale, config.seed, config.max_pixels, config.output)
    sources = labelled(config, real, job.labels, device)
    if _resident(job, record, sources, device):
        return resident_patches(config, sources, device), validation
    return StreamFeed(config, ray.train.get_dataset_shard("train"), device), validation


def _labeler(job: TrainJob, device: torch.device) -> Upscaler | None:
    """The network of online labels; None without."""
    if job.config.labels == "stored" or job.labels is None:
        return None
    return load_upscaler(job.labels, scale=job.config.scale, device=device, name=job.config.labels_from)


def _resident(job: TrainJob, record: TrainRecord, sources: list[Source], device: torch.device) -> bool:
    """Whether the data stays in memory: as recorded, otherwise if it fits on all workers.

    The decision is recorded, as streaming gives other patches and the free memory can differ in the next attempt.
    """
    if record.resident is not None and job.config.resident_bytes is None:
        return record.resident
    context = ray.train.get_context()
    fits = torch.tensor(
        [float(fits_in_memory(job.config, sources, device, context.get_local_world_size()))], device=device
    )
    if context.get_world_size() > 1:
        torch.distributed.all_reduce(fits, torch.distributed.ReduceOp.MIN)
    if context.get_world_rank() == 0:
        update_record(job.storage, resident=bool(fits))
    return bool(fits)
