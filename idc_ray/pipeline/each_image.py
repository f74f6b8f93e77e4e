"""What jobs that treat images independently have in common: output, tracking, a function on each image, quarantine."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import ray

from idc_ray.config.images import ImageJobConfig
from idc_ray.errors import BadRequest, IdcError, Locked, QuarantinedImages, RejectedImage
from idc_ray.images import ImageListing, ImageRef, find_images, output_inside
from idc_ray.interrupt import check_interrupted
from idc_ray.lifecycle import fail_run_on_error, locked_output
from idc_ray.pipeline.outage import input_root, input_samples, outage
from idc_ray.pipeline.progress import Heartbeat, Progress, Show
from idc_ray.pipeline.start import new_launch
from idc_ray.redact import printable, redact_all
from idc_ray.results import Quarantined
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.quarantine import (
    QuarantineEntry,
    list_quarantined,
    quarantine_image,
    quarantined_ids,
    release_quarantined,
)
from idc_ray.tracking import Tracker, tracking_uri

log = logging.getLogger(__name__)

#: As many blocks at most; the driver takes 1 ms for each.
MAX_BLOCKS = 4000

Work = Callable[[ImageRef], dict[str, Any]]


def find_input_images(config: ImageJobConfig) -> ImageListing:
    """The images of a configuration, without those in its output.

    Raises:
        BadRequest: there are none.
    """
    with Heartbeat("listing the images"):
        listing = find_images(config.input, without=output_inside(config.input, config.output))
    log.info("%d images in %s", listing.manifest.num_rows, listing.uri)
    return listing


@dataclass
class ImageJob:
    """One launch.

    Attributes:
        listing: the images.
        storage: the output, with a folder of records of the images for each step.
        digest: of the settings that the results depend on.
        record: settings and, at the end, results: the content of ``name``.
        name: of the record.
        tracker: MLflow run.
        lost_lock: set if another process took over the output.
        show: where progress is shown.
    """

    listing: ImageListing
    storage: StorageFolder
    digest: str
    record: dict[str, Any]
    name: str
    tracker: Tracker
    lost_lock: threading.Event
    show: Show

    def run(self, rows: pa.Table, folder: str, work: Work) -> None:
        """Write ``FOLDER/IMAGE-ID.json``, what ``work`` returns, for images; those that it fails on are quarantined.

        Args:
            rows: images of the manifest.
            folder: of the records.
            work: the function; `IdcError` and `OSError` end the job.

        Raises:
            IdcError: the input cannot be read, or the output not written.
        """
        done = self.listing.manifest.num_rows - rows.num_rows
        progress = Progress(self.listing.manifest.num_rows, done, show=self.show)
        size = 1 + rows.num_rows // MAX_BLOCKS
        blocks = [rows.slice(begin, size) for begin in range(0, rows.num_rows, size)]
        if not blocks:
            return
        step = _Step(self.listing, self.storage, self.digest, folder, work)
        with progress.ticking():
            for status in ray.data.from_blocks(blocks).map(step).iter_rows():
                check_interrupted()
                if self.lost_lock.is_set():
                    raise Locked(f"another process took over {self.storage.uri}; stop one of the two")
                if status["outcome"] == "fatal":
                    raise IdcError(status["reason"])
                if status["outcome"] == "quarantined":
                    log.warning("%s is quarantined: %s", *(printable(status[key]) for key in ("source", "reason")))
                progress.update(status)

    def missing(self, folder: str) -> tuple[pa.Table, set[str]]:
        """Images to do: those without a record in ``folder`` that are not quarantined, and those that changed since.

        Returns:
            Rows of the manifest, and the ids of the changed ones.
        """
        times = {info.base_name.removesuffix(".json"): info.mtime_ns or 0 for info in self.storage.infos(folder)}
        quarantined = quarantined_ids(self.storage, self.digest)
        manifest = self.listing.manifest
        ids, changed = manifest["image_id"].to_pylist(), manifest["mtime_ns"].to_pylist()
        stale = {each for each, time in zip(ids, changed, strict=True) if each in times and times[each] < time}
        keep = [each not in quarantined and (each not in times or each in stale) for each in ids]
        return manifest.filter(pa.array(keep, pa.bool_())), stale - quarantined

    def quarantined(self) -> tuple[Quarantined, ...]:
        """Images that could not be used."""
        entries = list_quarantined(self.storage, self.digest)
        return tuple(Quarantined(entry.source, entry.code, entry.reason, entry.image_id) for entry in entries)

    def finish(self, counts: Mapping[str, int], results: Mapping[str, Any]) -> None:
        """Write the record with its results, and log the counts."""
        self.record |= {"finished": True, "counts": counts, **results}
        self.storage.write_json(self.name, self.record)
        self.tracker.log_metrics(0, counts)
        self.tracker.log_artifact(json.dumps(self.record, indent=1), self.name)


@contextlib.contextmanager
def image_job(config: ImageJobConfig, digest: str, name: str, show: Show) -> Iterator[ImageJob]:
    """The output of a job, locked, with its record and MLflow run, which continues that of earlier launches.

    Args:
        config: the settings.
        digest: of those that the results depend on.
        name: of the record.
        show: where progress is shown.

    Raises:
        BadRequest: no images, or an output of other settings.
        Locked: another process works on the output.
        QuarantinedImages: at the end, if images were quarantined, and ``strict`` is set.
        IdcError: at the end, if all images were.
    """
    if config.mlflow.enabled:
        tracking_uri(config.mlflow, config.output)
    storage, listing = resolve(config.output), find_input_images(config)
    with locked_output(storage) as lost_lock:
        found = storage.read_json(name, "give another --output") or {}
        if found.get("digest", digest) != digest:
            raise BadRequest(f"{storage.uri} has results of other settings; give another --output")
        unlisted = quarantined_ids(storage, digest) - set(listing.manifest["image_id"].to_pylist())
        release_quarantined(storage, digest, None if config.retry_quarantined else sorted(unlisted))
        tracker = Tracker.start(config.mlflow, config.output, digest, found.get("mlflow_run_id"))
        with fail_run_on_error(tracker):
            settings = redact_all(config.model_dump(mode="json"))
            record = {"digest": digest, "settings": settings, "input": listing.uri, "mlflow_run_id": tracker.run_id}
            storage.write_json(name, record | {"finished": False})
            tracker.log_params(settings)
            tracker.log_input_dataset(listing.uri, digest, listing.manifest.num_rows)
            yield ImageJob(listing, storage, digest, record, name, tracker, lost_lock, show)
            failed = len(quarantined_ids(storage, digest))
            if failed == listing.manifest.num_rows:
                raise IdcError(f"none of the {failed} images could be used; see {storage.uri}/quarantine")
            tracker.finish("FINISHED")
    if config.strict and failed:
        raise QuarantinedImages(
            f"{failed} images were quarantined, and --strict was given; see {storage.uri}/quarantine; "
            "remove the images, or repair them and use --retry-quarantined"
        )


class _Step:
    """Row function of Ray Data."""

    def __init__(self, listing: ImageListing, storage: StorageFolder, digest: str, folder: str, work: Work) -> None:
        self.filesystem, self.root, self.samples = listing.filesystem, input_root(listing), input_samples(listing)
        self.input_uri, self.launch = listing.uri, new_launch()
        self.storage, self.digest, self.folder, self.work = storage, digest, folder, work

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        ref = ImageRef.from_row(row)
        status = {"source": ref.source, "outcome": "done", "reason": ""}
        try:
            record = self.work(ref)
            self.storage.write_json(f"{self.folder}/{ref.image_id}.json", {"source": ref.source, **record})
        except (IdcError, OSError) as error:  # as a row: Ray Data would drop the type and message
            return status | {"outcome": "fatal", "reason": str(error)}
        except RejectedImage as error:
            reason = outage(error, ref, self.filesystem, self.input_uri, self.root, self.samples)
            if reason is not None:
                return status | {"outcome": "fatal", "reason": reason}
            return status | self._quarantine(ref, error.code, error.reason)
        except MemoryError as error:
            return status | self._quarantine(ref, "out_of_memory", f"not enough memory for the image: {error}")
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return status | self._quarantine(ref, "unexpected", reason, traceback.format_exc())
        return status

    def _quarantine(self, ref: ImageRef, code: str, reason: str, trace: str = "") -> dict[str, str]:
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = QuarantineEntry(ref.image_id, ref.source, code, reason, trace, 1, self.launch, time)
        quarantine_image(self.storage, self.digest, entry)
        return {"outcome": "quarantined", "reason": f"{reason} [{code}]"}
