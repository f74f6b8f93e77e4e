"""Makes the training set of an arm and a seed, in this process, in the format of the condense job."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from idc_ray.comparison.images import Block, relabelled
from idc_ray.condensation.budget import mean_difficulty
from idc_ray.condensation.load import load_condenser
from idc_ray.errors import BadRequest, IdcError
from idc_ray.models import load_upscaler
from idc_ray.pipeline.compact_tasks import compact_rest
from idc_ray.pipeline.condense import IMAGES_PER_STEP
from idc_ray.pipeline.device import set_up_torch
from idc_ray.pipeline.inputs import PNG_BYTES_PER_PIXEL
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.reading import pixels
from idc_ray.pipeline.start import run_record
from idc_ray.pipeline.worker import CondenseWorker
from idc_ray.store.done import find_done
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.inflight import end_launch
from idc_ray.store.lease import LEASE_S
from idc_ray.store.lock import lock
from idc_ray.store.manifest import index_table, read_manifest, write_manifest
from idc_ray.store.quarantine import quarantined_ids
from idc_ray.store.run_record import begin_run, read_run

#: How long to wait for a task of a killed launch, or one whose process died, to let go of the set: in an object store
#: its lease has to expire.
LOCK_SECONDS = LEASE_S + 30.0


@dataclass(frozen=True)
class SetFacts:
    """Size and cost of a training set.

    Attributes:
        seconds: time to make it on one worker, without reading images; 0 for real images.
        bytes: stored size: Parquet shards, or the source files of the whole set.
        tiles: number of tiles, or of images of the whole set.
        ratio: LR pixels over those of all images.
        quarantined: number of images that could not be used.
    """

    seconds: float
    bytes: int
    tiles: int
    ratio: float
    quarantined: int


def condense_set(job: Job, teacher: bytes, blocks: Iterable[Block], images: int) -> SetFacts:
    """Condense all images into the store, continuing an earlier attempt; rows are those of the condense job.

    Args:
        job: the run, with its budgets.
        teacher: content of the checkpoint.
        blocks: the decoded images; iterated more than once.
        images: number of images.

    Raises:
        BadRequest: no image could be condensed.
        IdcError: the output cannot be written.
    """
    store, config = job.store, job.config
    pixels_in = sum(pc.sum(pc.multiply(block["height"], block["width"])).as_py() or 0 for block in blocks)
    expected = config.ratio * pixels_in * (1 + config.scale**2) * PNG_BYTES_PER_PIXEL
    known = read_run(store)
    # The set's folder is named by what the images are; where they are may change from launch to launch.
    more = {} if known is None else {"input_uri": known.input_uri}
    record = run_record(job, teacher, expected, **more)
    with lock(store, f"the comparison, launch {job.launch}", LOCK_SECONDS):
        run = begin_run(store, record)
        if read_manifest(store) is None:
            _condense_missing(job, teacher, blocks)
            compact_rest(store, job.digest, run.shard_count)
            end_launch(store, job.launch)
            write_manifest(store, job.digest, config.tile_size, {}, images)
    return set_facts(store)


def _condense_missing(job: Job, teacher: bytes, blocks: Iterable[Block]) -> None:
    worker = CondenseWorker(job, ray.put(teacher), isolated=False)
    if worker.useless is not None:
        raise worker.useless
    config = job.config
    together = config.actors.images_per_step or IMAGES_PER_STEP["GPUs" if worker.device.type == "cuda" else "CPUs"]
    settled = pa.array(set(find_done(job.store, job.digest)) | quarantined_ids(job.store, job.digest), pa.string())
    for block in blocks:
        missing = block.filter(pc.invert(pc.is_in(block["image_id"], settled)))
        for batch in missing.to_batches(max_chunksize=together):
            worker.work(batch.to_pylist())


def set_facts(store: StorageFolder) -> SetFacts:
    """Facts of a finished set, over all attempts.

    Raises:
        BadRequest: the set has no tiles.
    """
    manifest = read_manifest(store)
    run = read_run(store)
    if manifest is None or run is None:
        raise IdcError(f"{store.uri} is not finished")
    if not manifest.rows:
        reasons = "; ".join(f"{each['source']}: {each['reason']}" for each in manifest.quarantined[:3])
        raise BadRequest(f"{manifest.images} images gave no tiles ({reasons or 'the ratio is too small'})")
    records = index_table(store, ["lr_height", "lr_width", "seconds"]).to_pylist()
    pixels_in = sum(record["lr_height"] * record["lr_width"] for record in records)
    # Reading is left out: it is done once for all arms.
    seconds = sum(s for record in records for stage, s in dict(record["seconds"]).items() if stage != "read")
    tile = run.config["tile_size"]
    ratio = manifest.rows * tile**2 / pixels_in
    return SetFacts(seconds, manifest.bytes, manifest.rows, ratio, len(manifest.quarantined))


def whole_facts(blocks: Iterable[Block], seconds: float = 0.0) -> SetFacts:
    """Facts of the whole set; ``seconds``: time to make its labels."""
    used = size = bad = 0
    for block in blocks:
        good = block.filter(pc.equal(block["code"], ""))
        used, bad = used + good.num_rows, bad + block.num_rows - good.num_rows
        size += int(pc.sum(good["source_bytes"]).as_py() or 0)
    if not used:
        raise BadRequest(f"none of the {bad} images can be used; see the quarantine of the condense job for why")
    return SetFacts(seconds, size, used, 1.0, bad)


def label_whole(job: Job, teacher: bytes, blocks: Iterable[Block]) -> tuple[SetFacts, list[Block]]:
    """Label all images with the teacher; returns facts and the labelled images."""
    device = set_up_torch(job.config.actors, has_gpu=bool(ray.get_gpu_ids()))
    network = load_upscaler(teacher, scale=job.config.scale, device=device, name="the teacher")
    begin = time.perf_counter()
    labelled = list(relabelled(blocks, network))
    return whole_facts(labelled, time.perf_counter() - begin), labelled


def measure_images(job: Job, teacher: bytes, blocks: Iterable[Block]) -> list[dict[str, Any]]:
    """What the condense job's survey measures of the images, as rows for :func:`budgets_of`.

    Args:
        job: a run of any method; difficulty is measured if its allocation needs it.
        teacher: content of the checkpoint.
        blocks: the decoded images.
    """
    device = set_up_torch(job.config.actors, has_gpu=bool(ray.get_gpu_ids()))
    weighed = job.config.allocation == "difficulty"
    condenser = load_condenser(job.config, teacher, device) if weighed else None
    rows: list[dict[str, Any]] = []
    for row in (row for block in blocks for row in block.to_pylist()):
        if not row["code"]:
            rows.append({"image_id": row["image_id"], "height": row["height"], "width": row["width"]})
            if condenser is not None:
                rows[-1]["difficulty"] = condenser.difficulty(pixels(row, job.config.scale)[0])
    if weighed:
        mean_difficulty(rows)  # raises where there is none
    return rows
