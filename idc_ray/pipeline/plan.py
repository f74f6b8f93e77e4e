"""What is left to do: list what exists, do the rest. Retry, restart and resume are the same thing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from idc_ray.config import CondenseConfig
from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing
from idc_ray.pipeline.crashes import suspects_of_earlier_launches
from idc_ray.pipeline.inputs import changed_sources
from idc_ray.store.compaction import compact
from idc_ray.store.done import DoneImages, find_done
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import shard_of
from idc_ray.store.quarantine import QuarantineEntry, quarantine_image, quarantined_ids, release_quarantined

log = logging.getLogger(__name__)

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Plan:
    """Work of one attempt.

    Attributes:
        together: images to condense in batches, rows of the manifest by id: so the shards' ranges are complete one
            after the other. In the order of names all would be at the very end, and all parts be there till then.
        isolated: ids to run one by one afterwards, as earlier attempts were killed with them in flight.
        done_before: number of finished images.
        gone: number of finished images that the input no longer has; their tiles are kept.
        quarantined: number of quarantined images, which are not retried.
        old_launches: attempts that left images in flight.
    """

    together: pa.Table
    isolated: list[str]
    done_before: int
    gone: int
    quarantined: int
    old_launches: list[str]

    @property
    def todo(self) -> int:
        return self.together.num_rows + len(self.isolated)


def plan_work(
    config: CondenseConfig, listing: ImageListing, store: StorageFolder, digest: str, launch: str, shard_count: int
) -> Plan:
    """Compare the input with the output. Quarantined images that are no longer in the input are removed.

    Parts that hold a changed image are compacted, so that it is in one part only when it is done again.

    Raises:
        BadRequest: a finished image's source has changed, and ``source.on_changed`` is ``error``.
    """
    if config.retry_quarantined:
        released = release_quarantined(store, digest)
        log.info("retrying %d quarantined images", len(released))
    done = find_done(store, digest)
    ids = listing.manifest["image_id"]
    quarantined = quarantined_ids(store, digest)
    unlisted = quarantined - set(ids.filter(_among(ids, quarantined)).to_pylist())
    if unlisted:
        released = release_quarantined(store, digest, sorted(unlisted))
        log.info("removed %d quarantined images that are no longer in the input", len(released))
        quarantined -= unlisted
    changed = _changed(config, listing, done)
    for shard in {shard_of(image_id, shard_count) for image_id in changed & done.in_parts}:
        compact(store, digest, shard, shard_count)
    aside = _among(ids, quarantined)
    still_there = pc.is_in(ids, value_set=done.table["image_id"])
    finished = pc.and_not(still_there, pc.or_(aside, _among(ids, changed)))
    left = listing.manifest.filter(pc.invert(pc.or_(finished, aside)))
    suspects = suspects_of_earlier_launches(store, left["image_id"], config.store.attempts)
    if suspects.to_quarantine:
        _quarantine(listing, store, digest, launch, suspects.to_quarantine)
    gone = len(done) - pc.sum(still_there).as_py()
    if gone:
        log.warning("%d finished images are no longer in the input; their tiles are kept", gone)
    suspected = _among(left["image_id"], {*suspects.waiting, *suspects.to_quarantine})
    return Plan(
        together=left.filter(pc.invert(suspected)).sort_by("image_id"),
        isolated=suspects.waiting,
        done_before=pc.sum(finished).as_py(),
        gone=gone,
        quarantined=len(quarantined) + len(suspects.to_quarantine),
        old_launches=suspects.launches,
    )


def _among(ids: pa.ChunkedArray, image_ids: set[str]) -> pa.ChunkedArray:
    """For each id, whether it is one of ``image_ids``."""
    return pc.is_in(ids, value_set=pa.array(sorted(image_ids), pa.string()))


def _changed(config: CondenseConfig, listing: ImageListing, done: DoneImages) -> set[str]:
    changed = changed_sources(listing, done)
    if changed and config.source.on_changed == "error":
        names = ", ".join(repr(row["source"]) for row in changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")
        raise BadRequest(
            f"{len(changed)} sources changed after they were condensed ({names}); "
            "give --source.on-changed redo to condense them again, or another --output"
        )
    if changed:
        log.info("condensing %d changed sources again", len(changed))
    return {row["image_id"] for row in changed}


def _quarantine(
    listing: ImageListing, store: StorageFolder, digest: str, launch: str, to_quarantine: dict[str, int]
) -> None:
    manifest = listing.manifest.select(["image_id", "source"]).to_pylist()
    for row in manifest:
        count = to_quarantine.get(row["image_id"])
        if count is None:
            continue
        reason = (
            f"{count} attempts of the job were killed while only this image was running; it may crash the whole "
            "machine. Remove it, or use --retry-quarantined"
        )
        time = datetime.now(UTC).isoformat(timespec="seconds")
        quarantine_image(
            store,
            digest,
            QuarantineEntry(row["image_id"], row["source"], "killed_launch", reason, "", count, launch, time),
        )
        log.warning("%s is quarantined: %s", row["source"], reason)
