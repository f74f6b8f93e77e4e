"""The main job, from a configuration to a condensed set. Reads as its table of contents: see :func:`condense`."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import platform
import tempfile
import threading
import time
import uuid
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import ray
import torch

import idc_ray
from idc_ray.condensation.load import load_networks
from idc_ray.config import CondenseConfig
from idc_ray.errors import IdcError, Locked, QuarantinedImages
from idc_ray.images import ImageListing
from idc_ray.images.names import printable
from idc_ray.interrupt import at_forced_end, check_interrupted
from idc_ray.models import teacher_sha256
from idc_ray.pipeline import dry_run
from idc_ray.pipeline.cluster import PoolPlan, data_settings, join_for, plan_pool
from idc_ray.pipeline.compactor import Compactor
from idc_ray.pipeline.device import one_thread
from idc_ray.pipeline.inputs import by_range, estimate_sizes, find_input, input_root, read_teacher, readable_samples
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.plan import Plan, plan_work
from idc_ray.pipeline.progress import Heartbeat, Progress, Show
from idc_ray.pipeline.report import GALLERY, draw_gallery, summarise
from idc_ray.pipeline.stream import condense_stream
from idc_ray.pipeline.summary import Summary
from idc_ray.pipeline.survey import survey
from idc_ray.pipeline.timeline import Timeline
from idc_ray.pipeline.waiting import statuses_while_waiting
from idc_ray.report import REPORT, Options, write_own_report
from idc_ray.store import Manifest, RunRecord, Store, holder_text, shard_count_for
from idc_ray.tracking import Tracker, tracking_uri

__all__ = ["Finished", "condense", "run_condense", "versions"]

log = logging.getLogger(__name__)

#: Images read at the start to know how many shards there will be.
SIZE_SAMPLES = 4

#: Least seconds between two points of a metric's curve.
METRIC_SECONDS = 2.0

#: Images in one call of a worker where ``actors.images_per_step`` is not set (ours).
IMAGES_PER_STEP = {"CPUs": 4, "GPUs": 16}


@dataclass
class _Launch:
    """What the steps of one launch hand on to each other."""

    job: Job
    listing: ImageListing
    teacher: bytes
    run: RunRecord
    plan: Plan
    tracker: Tracker
    summary: Summary
    lost_lock: threading.Event
    show: Show
    timeline: Timeline


@dataclass(frozen=True)
class Finished:
    """A job that has come to its end.

    Attributes:
        store: its output.
        summary: numbers over all images.
        manifest: of the output.
        failure: why that is not what was asked for: images were quarantined and ``strict`` was given, no image could be
            condensed, or none gave a tile.
    """

    store: Store
    summary: Summary
    manifest: Manifest
    failure: IdcError | None


def condense(config: CondenseConfig) -> int:
    """The command: :func:`run_condense` between its settings and its summary, printed.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_condense`; or ``failure`` of what it returns.
    """
    print(config.to_yaml(), flush=True)
    if config.dry_run:
        with tempfile.TemporaryDirectory() as folder:
            job, listing, teacher = _prepare(config, f"{folder}/photographs")
            with Heartbeat("timing a few images"):
                print(dry_run.estimate(job, listing, teacher))
        return 0
    finished = run_condense(config, "lines")
    print(finished.summary.format())
    print(f"{'output':<15} {finished.store.uri}", flush=True)
    if finished.failure is not None:
        raise finished.failure
    return 0


def run_condense(config: CondenseConfig, show: Show = "log") -> Finished:
    """Condense the images of a configuration; the same call again continues or confirms what is there.

    Args:
        config: the settings; ``dry_run`` is not looked at.
        show: where progress is shown.

    Raises:
        BadRequest: what was asked for cannot be done.
        Locked: another process works on the output.
        Interrupted: SIGINT or SIGTERM.
        IdcError: anything else that a user can mend.
    """
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)  # first: to list a million images takes a minute
    job, listing, teacher = _prepare(config)
    job.store.check_writable()
    with job.store.lock(holder_text(job.launch)) as lost_lock:
        with Heartbeat("looking at what is done, and at images for their sizes"):
            launch = _begin(job, listing, teacher, lost_lock, show)
        try:
            if launch.plan.todo:
                _run_on_ray(launch)
            with Heartbeat("writing shards, manifest and gallery"):
                finished, changed = _finish(launch)
        except BaseException as error:
            launch.tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        finally:
            launch.timeline.write()
    if changed and config.report_images:
        with Heartbeat("writing the report"):
            write_own_report(job.store.storage, Options(config.report_images), listing)
    return finished


def _prepare(config: CondenseConfig, photographs: str | None = None) -> tuple[Job, ImageListing, bytes]:
    """Find everything that the job needs; whatever is missing or wrong is told here, not by a worker minutes later."""
    with Heartbeat("reading the teacher and listing the images"):
        teacher = read_teacher(config)
        listing = find_input(config, photographs)
    log.info("%d images in %s", listing.manifest.num_rows, listing.uri)
    if listing.ignored:
        log.info("%d files there are no images by their ending and are ignored", listing.ignored)
    asked = config.iterations not in (0, CondenseConfig().iterations)
    if asked and config.synthesizes_tiles and not config.pixel_steps:
        log.warning(
            "--iterations %d changes nothing: they are steps of learning pixels, and --matching %s learns none; "
            "use --matching both or pixels, or --matching none to keep the initial tiles",
            config.iterations,
            config.matching,
        )
    job = _new_job(config, listing, teacher)
    with one_thread():
        feature_network, labeler = load_networks(config, teacher, torch.device("cpu"))
    if feature_network is not labeler:
        log.info("the bundled network says what is matched and difficult, the teacher labels; see --feature-network")
    return job, listing, teacher


def _new_job(config: CondenseConfig, listing: ImageListing, teacher: bytes) -> Job:
    return Job(
        config=config,
        store=Store.open(config.output),
        digest=config.digest(teacher_sha256(teacher)),
        launch=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        filesystem=listing.filesystem,
        lr_filesystem=listing.lr_filesystem,
        root=input_root(listing),
        input_uri=listing.uri,
    )


def _begin(job: Job, listing: ImageListing, teacher: bytes, lost_lock: threading.Event, show: Show) -> _Launch:
    """Write what this run is, see what is left of it, and begin to track it."""
    config = job.config
    samples = list(readable_samples(listing, config, SIZE_SAMPLES))
    expected = estimate_sizes(config, listing.manifest.num_rows, samples).bytes
    run = job.store.begin_run(
        RunRecord(
            config=config.model_dump(mode="json"),
            digest=job.digest,
            teacher_sha256=teacher_sha256(teacher),
            input_uri=listing.uri,
            versions=versions(),
            shard_count=shard_count_for(int(expected), config.store.shard_bytes),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            device="",
            lr_uri=listing.lr_uri,
        ),
        config.overwrite,
    )
    if run.images != listing.manifest.num_rows:
        run = job.store.update_run(images=listing.manifest.num_rows)
    if config.overwrite:
        job.store.storage.delete(REPORT)  # of the run that is discarded
    plan = plan_work(config, listing, job.store, job.digest, job.launch)
    log.info("%d images to do, %d done before, %d quarantined before", plan.todo, plan.done_before, plan.quarantined)
    tracker = Tracker.start(config.mlflow, config.output, job.digest, run.mlflow_run_id)
    if tracker.run_id != run.mlflow_run_id:
        run = job.store.update_run(mlflow_run_id=tracker.run_id)
    tracker.log_params(config.model_dump(mode="json"))
    tracker.log_input_dataset(listing.uri, job.digest, listing.manifest.num_rows)
    tracker.log_artifact(config.to_yaml(), "config.yaml")
    bandwidths = config.rlff.bandwidths if config.synthesizes_tiles else ()
    summary = Summary(config.ratio, config.tile_size**2, bandwidths)
    timeline = Timeline(job.store.storage, config.overwrite)
    return _Launch(job, listing, teacher, run, plan, tracker, summary, lost_lock, show, timeline)


def versions() -> dict[str, str]:
    """Of the packages that matter, for records."""
    packages = ("torch", "ray", "pyarrow", "numpy", "pillow", "mlflow")
    ours = {"idc_ray": idc_ray.__version__, "python": platform.python_version()}
    return ours | {name: importlib.metadata.version(name) for name in packages}


def _run_on_ray(launch: _Launch) -> None:
    """Condense what is left; whatever ends this early, no process of ours lives on."""
    ours = not ray.is_initialized()
    with Heartbeat("starting or joining Ray"):
        join_for(launch.job.config.actors)
    blameless = partial(launch.job.store.end_launch, launch.job.launch)  # no image is to blame for what was in flight
    try:
        with at_forced_end(blameless), data_settings():
            _condense_all(launch)
    except BaseException as error:
        with at_forced_end(blameless):
            if ours:
                ray.shutdown()  # first: a worker that still runs would state again what it works on
            if isinstance(error, KeyboardInterrupt | IdcError):
                blameless()
        raise
    if ours:
        ray.shutdown()


def _condense_all(launch: _Launch) -> None:
    job, plan = launch.job, launch.plan
    config = job.config
    teacher = ray.put(launch.teacher)
    if config.allocation == "difficulty":
        with Heartbeat("measuring the mean difficulty of the images"):
            job = replace(job, mean_difficulty=_mean_difficulty(launch, teacher))
    compactor = Compactor(job.store, job.digest, launch.run.shard_count, plan.together | set(plan.isolated))
    progress = Progress(launch.listing.manifest.num_rows, plan.done_before + plan.quarantined, show=launch.show)
    with progress.ticking():
        for image_ids, isolated in ((plan.together, False), (set(plan.isolated), True)):
            if not image_ids:
                continue
            batch = 1 if isolated else _batch(config, len(image_ids))
            pool = _pool(launch, -(-len(image_ids) // batch))
            launch.timeline.begin(pool.device, pool.initial_size)
            images = by_range(launch.listing.manifest, image_ids)
            with contextlib.closing(condense_stream(images, job, teacher, pool, batch, isolated)) as statuses:
                _follow(launch, statuses, pool, compactor, progress)


def _batch(config: CondenseConfig, images: int) -> int:
    """Images in one call: as configured, but few enough that all workers get some."""
    pool = plan_pool(config.actors, ray.cluster_resources(), images)
    together = config.actors.images_per_step or IMAGES_PER_STEP[pool.device]
    return max(1, min(together, -(-images // pool.max_size)))


def _pool(launch: _Launch, batches: int) -> PoolPlan:
    actors, resources = launch.job.config.actors, ray.cluster_resources()
    pool = plan_pool(actors, resources, batches)
    log.info("condensing on %s with %s workers, %d at the start", pool.device, pool.sizes, pool.initial_size)
    if not resources.get("CPU") and actors.gpus is None and pool.device == "CPUs":
        log.warning("the cluster has no CPUs or GPUs yet; if it is to grow by GPUs, say so: --actors.gpus 1")
    stored = launch.run.device
    if not stored:
        launch.run = launch.job.store.update_run(device=pool.device)
    elif stored != pool.device:
        log.warning("earlier launches used %s, this one %s: the last bits of tiles will differ", stored, pool.device)
    return pool


def _mean_difficulty(launch: _Launch, teacher: ray.ObjectRef[bytes]) -> float:
    """From the run's record, or measured and recorded: all launches of a run must use the same."""
    if launch.run.survey is None:
        launch.run = launch.job.store.update_run(survey=survey(launch.listing, launch.job, teacher))
    assert launch.run.survey is not None
    return float(launch.run.survey["mean_difficulty"])


def _follow(launch: _Launch, statuses: Any, pool: PoolPlan, compactor: Compactor, progress: Progress) -> None:
    """Take status rows as they arrive: show them, track them, compact complete ranges."""
    told = 0.0
    for status in statuses_while_waiting(statuses, pool, lambda: _at_work(launch.job)):
        check_interrupted()
        if launch.lost_lock.is_set():
            raise Locked(f"another process took over {launch.job.store.uri}; see which one, and stop one of the two")
        if status["outcome"] == "quarantined":
            log.warning("%s is quarantined: %s [%s]", *(printable(status[key]) for key in ("source", "reason", "code")))
        progress.update(status)
        commit = status["seconds"].get("commit", 0.0)
        launch.summary.seconds["commit"] = launch.summary.seconds.get("commit", 0.0) + commit
        compactor.finished(status["image_id"])
        launch.timeline.add()
        if time.monotonic() - told >= METRIC_SECONDS:
            told = time.monotonic()
            launch.tracker.log_metrics(progress.done, progress.metrics())
    launch.tracker.log_metrics(progress.done, progress.metrics())


def _at_work(job: Job) -> int:
    """Workers that have stated what they work on."""
    with contextlib.suppress(OSError, IdcError):  # it is only told
        return len(job.store.read_inflight(job.launch))
    return 0


def _finish(launch: _Launch) -> tuple[Finished, bool]:
    """Compact what is left, write the manifest last; whether it was written."""
    job, store, tracker = launch.job, launch.job.store, launch.tracker
    Compactor(store, job.digest, launch.run.shard_count, ()).finish()
    for old in (*launch.plan.old_launches, job.launch):
        store.end_launch(old)
    summarise(launch.summary, store, job.digest, launch.plan.done_before + launch.plan.gone)
    numbers = launch.summary.as_dict()
    manifest = store.read_manifest()
    changed = bool(launch.plan.todo) or manifest is None or not _is_told(launch, manifest)
    if changed or manifest is None:
        timing = {"wall": numbers["wall_seconds"], **numbers["seconds"]}
        expected = launch.listing.manifest.num_rows + launch.plan.gone
        manifest = store.write_manifest(job.digest, timing, expected)
        tracker.log_artifact(json.dumps(asdict(manifest), indent=2), "manifest.json")
        picture = draw_gallery(job.config, launch.listing, store)
        if picture is not None:
            store.storage.write(GALLERY, picture)
            tracker.log_artifact(picture, GALLERY)
    tracker.log_metrics(numbers["images"], {k: v for k, v in numbers.items() if isinstance(v, int | float)})
    failure = _failure(launch)
    tracker.finish("FINISHED" if failure is None else "FAILED")
    return Finished(store, launch.summary, manifest, failure), changed


def _is_told(launch: _Launch, manifest: Manifest) -> bool:
    """Whether the manifest names no image as set aside which has left the input since."""
    aside = launch.job.store.quarantined_ids(launch.job.digest)
    return all(entry["image_id"] in aside for entry in manifest.quarantined)


def _failure(launch: _Launch) -> IdcError | None:
    """Why what came of the job is not what was asked for."""
    summary = launch.summary
    if summary.failed and launch.job.config.strict:
        return QuarantinedImages(
            f"{summary.failed} images were quarantined, and --strict was given; see the reasons above, remove the "
            "images, or mend them and use --retry-quarantined"
        )
    if summary.failed == launch.listing.manifest.num_rows:
        return IdcError(f"none of the {summary.failed} images could be condensed; see the reasons above")
    if not summary.tiles:
        return IdcError(f"not one tile came of all images; {summary.fix_for_no_tile()}")
    return None
