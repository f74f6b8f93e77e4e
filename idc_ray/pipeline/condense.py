"""The condense job. :func:`run_condense` lists its steps."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import ray
import torch

from idc_ray.condensation.load import load_networks
from idc_ray.config import CondenseConfig
from idc_ray.errors import IdcError, Locked, QuarantinedImages
from idc_ray.images import ImageListing
from idc_ray.interrupt import at_forced_end, check_interrupted
from idc_ray.lifecycle import fail_run_on_error, locked_output, print_plan, ray_cluster
from idc_ray.pipeline import dry_run
from idc_ray.pipeline.batches import Batches, plan_batches, single_images
from idc_ray.pipeline.cluster import PoolPlan, data_settings, join_for, plan_pool
from idc_ray.pipeline.compact_tasks import Compactor, compact_rest
from idc_ray.pipeline.crashes import workers_at_work
from idc_ray.pipeline.device import one_thread
from idc_ray.pipeline.gallery import GALLERY, draw_gallery
from idc_ray.pipeline.inputs import (
    estimate_sizes,
    find_input,
    only,
    read_teacher,
    readable_samples,
)
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.plan import Plan, plan_work
from idc_ray.pipeline.progress import Heartbeat, Progress, Show
from idc_ray.pipeline.start import new_job, new_launch, run_record
from idc_ray.pipeline.stream import condense_stream
from idc_ray.pipeline.summary import Summary, summarise
from idc_ray.pipeline.survey import survey
from idc_ray.pipeline.timeline import Timeline
from idc_ray.pipeline.waiting import log_until_first, warn_if_no_room, what_is_awaited
from idc_ray.redact import printable
from idc_ray.report import REPORT, Options, write_own_report
from idc_ray.results import CondenseResult, Quarantined
from idc_ray.status_text import work_in_progress
from idc_ray.store.filesystem import resolve
from idc_ray.store.inflight import end_launch
from idc_ray.store.manifest import Manifest, read_manifest, write_manifest
from idc_ray.store.quarantine import quarantined_ids
from idc_ray.store.run_record import RunRecord, begin_run, update_run
from idc_ray.tracking import Tracker, tracking_uri

log = logging.getLogger(__name__)

#: Images read at the start to know how many shards there will be.
SIZE_SAMPLES = 4

#: Least seconds between two points of a metric's curve.
METRIC_SECONDS = 2.0

#: Images in one call of a worker where ``actors.images_per_step`` is not set.
IMAGES_PER_STEP = {"CPUs": 4, "GPUs": 16}

#: Pixels in one call of a GPU: several photographs, as it computes some while the host prepares others.
GPU_PIXELS = 50_000_000


@dataclass
class _Launch:
    """State of one attempt, passed between its steps."""

    job: Job
    listing: ImageListing
    teacher: bytes
    run: RunRecord
    plan: Plan
    summary: Summary
    lost_lock: threading.Event
    show: Show
    timeline: Timeline
    tracker: Tracker = field(default_factory=Tracker)  # off until _track

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Close the MLflow run, if there is one."""
        self.tracker.finish(status)


def condense(config: CondenseConfig) -> int:
    """The command: :func:`run_condense`, or an estimate.

    Returns:
        The exit code: 0.

    Raises:
        IdcError, Interrupted: as :func:`run_condense`.
    """
    if print_plan(config, lambda photographs: _estimate(config, photographs)):
        run_condense(config, "lines")
    return 0


def run_condense(config: CondenseConfig, show: Show = "log") -> CondenseResult:
    """Condense the images of a configuration; a repeated call continues, or returns the result of a finished run.

    Args:
        config: the settings; ``dry_run`` is ignored.
        show: where progress is shown; ``lines`` also prints the summary.

    Raises:
        BadRequest: an error in settings or input.
        Locked: another process works on the output.
        QuarantinedImages: images were quarantined, and ``strict`` is set.
        Interrupted: SIGINT or SIGTERM.
        IdcError: no image could be condensed, or no tiles were produced; any other error that a user can fix.
    """
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)  # first: to list a million images takes a minute
    job, listing, teacher = _prepare(config)
    with locked_output(job.store, job.launch) as lost_lock:
        with Heartbeat("listing finished images and sampling image sizes"):
            launch = _begin(job, listing, teacher, lost_lock, show)
        with fail_run_on_error(launch):
            try:
                if launch.plan.todo:
                    _run_on_ray(launch)
                else:
                    _track(launch)
                with Heartbeat("writing shards, manifest and gallery"):
                    manifest, changed = _finish(launch)
            finally:
                launch.timeline.write()
            result = _result(launch, manifest)
            if changed and config.report_images:
                with Heartbeat("writing the report"):
                    write_own_report(job.store, Options(config.report_images), listing)
            if show == "lines":
                print(f"{result.summary}\n{'output':<15} {result.output}", flush=True)
            _check_result(launch)
            launch.tracker.finish("FINISHED")
    if launch.summary.failed and config.strict:
        raise QuarantinedImages(
            f"{launch.summary.failed} images were quarantined, and --strict was given; see "
            f"{launch.job.store.uri}/quarantine; remove the images, or repair them and use --retry-quarantined"
        )
    return result


def _estimate(config: CondenseConfig, photographs: str) -> str:
    job, listing, teacher = _prepare(config, photographs)
    with Heartbeat("timing a few images"):
        return dry_run.estimate(job, listing, teacher)


def _prepare(config: CondenseConfig, photographs: str | None = None) -> tuple[Job, ImageListing, bytes]:
    """Find and check all inputs, so that errors are raised before workers start."""
    with Heartbeat("reading the teacher and listing the images"):
        teacher = read_teacher(config)
        listing = find_input(config, photographs)
    log.info("%d images in %s", listing.manifest.num_rows, listing.uri)
    if listing.ignored:
        log.info("ignored %d files without an image extension", listing.ignored)
    if listing.duplicates:
        log.info("left out %d copies of other images (--duplicates, --clips)", listing.duplicates["images"])
    if config.method_reason:
        log.info("method %s (%s)", config.method, config.method_reason)
    asked = config.iterations not in (0, CondenseConfig().iterations)
    if asked and config.synthesizes_tiles and not config.pixel_steps:
        log.warning(
            "--iterations %d has no effect: they are steps of learning pixels, and --matching %s has none; "
            "use --matching both or pixels, or --matching none to keep the initial tiles",
            config.iterations,
            config.matching,
        )
    if config.degradation != "bicubic" and config.synthesizes_tiles and config.loss.gamma:
        log.warning(
            "with degraded LR images, tiles of large gradients (loss.gamma %g) made worse students than random crops; "
            "consider --loss.gamma 0 --init random (docs/degradation.md)",
            config.loss.gamma,
        )
    job = new_job(config, resolve(config.output), listing, teacher, new_launch())
    with one_thread():
        feature_network, labeler = load_networks(config, teacher, torch.device("cpu"))
    if feature_network is not labeler:
        log.info("features and difficulty by the bundled network, labels by the teacher; see --feature-network")
    return job, listing, teacher


def _begin(job: Job, listing: ImageListing, teacher: bytes, lost_lock: threading.Event, show: Show) -> _Launch:
    """Write the run record, and plan the remaining work."""
    config = job.config
    samples = list(readable_samples(listing, config, SIZE_SAMPLES))
    expected = estimate_sizes(config, listing.manifest.num_rows, samples).bytes
    run = begin_run(
        job.store,
        run_record(job, teacher, expected, lr_uri=listing.lr_uri),
        config.overwrite,
    )
    now = {"images": listing.manifest.num_rows, "duplicates": listing.duplicates}
    if any(getattr(run, name) != value for name, value in now.items()):
        run = update_run(job.store, **now)
    if config.overwrite:
        job.store.delete(REPORT)  # of the run that is discarded
    plan = plan_work(config, listing, job.store, job.digest, job.launch, run.shard_count)
    log.info(
        "%d images to condense, %d already done, %d already quarantined", plan.todo, plan.done_before, plan.quarantined
    )
    bandwidths = config.rlff.bandwidths if config.synthesizes_tiles else ()
    summary = Summary(config.ratio, config.tile_size**2, bandwidths)
    timeline = Timeline(job.store, config.overwrite)
    return _Launch(job, listing, teacher, run, plan, summary, lost_lock, show, timeline)


def _track(launch: _Launch) -> None:
    """Start or continue the MLflow run."""
    job, config, listing = launch.job, launch.job.config, launch.listing
    tracker = Tracker.start(config.mlflow, config.output, job.digest, launch.run.mlflow_run_id)
    launch.tracker = tracker
    if tracker.run_id != launch.run.mlflow_run_id:
        launch.run = update_run(job.store, mlflow_run_id=tracker.run_id)
    tracker.log_params(config.model_dump(mode="json"))
    tracker.log_input_dataset(listing.uri, job.digest, listing.manifest.num_rows)
    tracker.log_artifact(config.to_yaml(), "config.yaml")


def _run_on_ray(launch: _Launch) -> None:
    """Condense the remaining images; a cluster started here is shut down in any case."""
    # No image caused a stop from outside: the records of images in flight are removed.
    forget_in_flight = partial(end_launch, launch.job.store, launch.job.launch)
    # At the same time: MLflow is imported and its database made while this process only waits for those of Ray.
    with at_forced_end(forget_in_flight), ThreadPoolExecutor(1, "mlflow") as beside:
        try:
            tracked = beside.submit(_track, launch)
            with ray_cluster(lambda: join_for(launch.job.config.actors)), data_settings():
                with Heartbeat("starting the MLflow run"):
                    tracked.result()
                _condense_all(launch)
        except (KeyboardInterrupt, IdcError):
            # The cluster has ended: a worker that still ran would state again what it works on.
            with contextlib.suppress(OSError, IdcError):  # the output cannot be written, which the error says
                forget_in_flight()
            raise


def _condense_all(launch: _Launch) -> None:
    job, plan = launch.job, launch.plan
    config = job.config
    teacher = ray.put(launch.teacher)
    with Heartbeat("measuring the images for their budgets"):
        found = survey(launch.listing, job, teacher)
    job = replace(job, mean_difficulty=found.mean_difficulty, budgets=found.budgets)
    suspects = only(launch.listing.manifest, set(plan.isolated)).sort_by("image_id")
    unfinished = pa.concat_tables([plan.together, suspects])["image_id"]
    compactor = Compactor(job.store, job.digest, launch.run.shard_count, unfinished)
    progress = Progress(
        launch.listing.manifest.num_rows,
        plan.done_before + plan.quarantined,
        show=launch.show,
        work=lambda: _work(launch),
    )
    with progress.ticking():
        for images, isolated in ((plan.together, False), (suspects, True)):
            if not images.num_rows:
                continue
            batches = single_images(images) if isolated else _batches(config, images)
            pool = _pool(launch, batches.count)
            launch.timeline.begin(pool.device, pool.initial_size)
            with contextlib.closing(condense_stream(batches, job, teacher, pool, isolated)) as statuses:
                _follow(launch, statuses, pool, compactor, progress)
        compactor.wait()


def _batches(config: CondenseConfig, images: pa.Table) -> Batches:
    """Batches of the configured size; by default, large images are alone."""
    pool = plan_pool(config.actors, ray.cluster_resources(), images.num_rows)
    most = config.actors.images_per_step
    if most is None:
        pixels = GPU_PIXELS if pool.device == "GPUs" else None
        return plan_batches(images, IMAGES_PER_STEP[pool.device], pool.max_size, pixels)
    return plan_batches(images, most, pool.max_size, math.inf)


def _pool(launch: _Launch, batches: int) -> PoolPlan:
    actors, resources = launch.job.config.actors, ray.cluster_resources()
    pool = plan_pool(actors, resources, batches)
    log.info("condensing on %s: %s workers, %d at the start", pool.device, pool.sizes, pool.initial_size)
    if not resources.get("CPU") and actors.gpus is None and pool.device == "CPUs":
        log.warning("the cluster has no CPUs or GPUs yet; if it will add GPUs, give --actors.gpus 1")
    stored = launch.run.device
    if not stored:
        launch.run = update_run(launch.job.store, device=pool.device)
    elif stored != pool.device:
        log.warning("earlier attempts used %s, this one %s: the last bits of tiles will differ", stored, pool.device)
    return pool


def _follow(launch: _Launch, statuses: Any, pool: PoolPlan, compactor: Compactor, progress: Progress) -> None:
    """Process status rows as they arrive: show and track them, compact complete shards."""
    logged_at = 0.0
    warn_if_no_room(pool)
    for status in log_until_first(statuses, "no image is done", lambda: what_is_awaited(pool, _work(launch))):
        check_interrupted()
        if launch.lost_lock.is_set():
            raise Locked(f"another process took over {launch.job.store.uri}; stop one of the two")
        if status["outcome"] == "quarantined":
            log.warning("%s is quarantined: %s [%s]", *(printable(status[key]) for key in ("source", "reason", "code")))
        progress.update(status)
        commit = status["seconds"].get("commit", 0.0)
        launch.summary.seconds["commit"] = launch.summary.seconds.get("commit", 0.0) + commit
        compactor.finished(status["image_id"])
        launch.timeline.add()
        if time.monotonic() - logged_at >= METRIC_SECONDS:
            logged_at = time.monotonic()
            launch.tracker.log_metrics(progress.done, progress.metrics())
    launch.tracker.log_metrics(progress.done, progress.metrics())


def _work(launch: _Launch) -> str:
    """What the workers do, from their in-flight records."""
    with contextlib.suppress(OSError, IdcError):  # it is only shown
        return "; ".join(work_in_progress(workers_at_work(launch.job.store, launch.job.launch), time.time()))
    return ""


def _finish(launch: _Launch) -> tuple[Manifest, bool]:
    """Compact the remaining parts, and write the manifest last; returns it and whether it was written."""
    job, store, tracker = launch.job, launch.job.store, launch.tracker
    compact_rest(store, job.digest, launch.run.shard_count)
    for old in (*launch.plan.old_launches, job.launch):
        end_launch(store, old)
    summarise(launch.summary, store, job.digest, launch.plan.done_before + launch.plan.gone)
    numbers = launch.summary.as_dict()
    manifest = read_manifest(store)
    changed = bool(launch.plan.todo) or manifest is None or not _is_current(launch, manifest)
    if changed or manifest is None:
        timing = {"wall": numbers["wall_seconds"], **numbers["seconds"]}
        expected = launch.listing.manifest.num_rows + launch.plan.gone
        manifest = write_manifest(store, job.digest, job.config.tile_size, timing, expected)
        tracker.log_artifact(json.dumps(asdict(manifest), indent=2), "manifest.json")
        picture = draw_gallery(job.config, launch.listing, store)
        if picture is not None:
            store.write(GALLERY, picture)
            tracker.log_artifact(picture, GALLERY)
    tracker.log_metrics(numbers["images"], {k: v for k, v in numbers.items() if isinstance(v, int | float)})
    return manifest, changed


def _is_current(launch: _Launch, manifest: Manifest) -> bool:
    """Whether all images that the manifest names as quarantined are still in the input."""
    quarantined = quarantined_ids(launch.job.store, launch.job.digest)
    return all(entry["image_id"] in quarantined for entry in manifest.quarantined)


def _result(launch: _Launch, manifest: Manifest) -> CondenseResult:
    losses = launch.summary.loss()
    return CondenseResult(
        output=launch.job.store.uri,
        num_images=manifest.images,
        num_tiles=manifest.rows,
        ratio=launch.summary.reached_ratio,
        quarantined=tuple(Quarantined(**entry) for entry in manifest.quarantined),
        losses={} if losses is None else dict(zip(("start", "end"), losses, strict=True)),
        num_bytes=manifest.bytes,
        seconds=launch.summary.as_dict()["wall_seconds"],
        summary=launch.summary.format(),
    )


def _check_result(launch: _Launch) -> None:
    """Raise an error if nothing was condensed."""
    summary = launch.summary
    if summary.failed == launch.listing.manifest.num_rows:
        raise IdcError(f"none of the {summary.failed} images could be condensed; see {launch.job.store.uri}/quarantine")
    if not summary.tiles:
        raise IdcError(f"no tiles were produced; {summary.fix_for_no_tile()}")
