"""What is left to do: list what exists, do the rest. Retry, restart and resume are the same thing."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from idc_ray.config import CondenseConfig
from idc_ray.errors import BadRequest
from idc_ray.images import ImageListing
from idc_ray.pipeline.attempts import suspects_of_earlier_launches
from idc_ray.pipeline.inputs import changed_sources
from idc_ray.store import (
    DoneImages,
    QuarantineEntry,
    compact,
    find_done,
    quarantine_image,
    quarantined_ids,
    release_quarantined,
    shard_of,
)
from idc_ray.store.filesystem import StorageFolder

__all__ = ["Plan", "plan_work"]

log = logging.getLogger(__name__)

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Plan:
    """Work of one attempt.

    Attributes:
        together: ids to condense in batches.
        isolated: ids to run one by one afterwards, as earlier attempts were killed with them in flight.
        done_before: number of finished images.
        gone: number of finished images that the input no longer has; their tiles are kept.
        quarantined: number of quarantined images, which are not retried.
        old_launches: attempts that left images in flight.
    """

    together: set[str]
    isolated: list[str]
    done_before: int
    gone: int
    quarantined: int
    old_launches: list[str]

    @property
    def todo(self) -> int:
        return len(self.together) + len(self.isolated)


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
    ids = set(listing.manifest["image_id"].to_pylist())
    quarantined = quarantined_ids(store, digest)
    if quarantined - ids:
        released = release_quarantined(store, digest, sorted(quarantined - ids))
        log.info("removed %d quarantined images that are no longer in the input", len(released))
        quarantined &= ids
    changed = _changed(config, listing, done)
    for shard in {shard_of(image_id, shard_count) for image_id in changed & done.in_parts.keys()}:
        compact(store, digest, shard, shard_count)
    finished_or_aside = {i for i in ids if i in quarantined or (i in done and i not in changed)}
    todo = ids - finished_or_aside
    suspects = suspects_of_earlier_launches(store, lambda image: image not in todo, config.store.attempts)
    if suspects.to_quarantine:
        _quarantine(listing, store, digest, launch, suspects.to_quarantine)
    gone = sum(image not in ids for image in done)
    if gone:
        log.warning("%d finished images are no longer in the input; their tiles are kept", gone)
    return Plan(
        together=todo - set(suspects.waiting) - suspects.to_quarantine.keys(),
        isolated=suspects.waiting,
        done_before=len(finished_or_aside - quarantined),
        gone=gone,
        quarantined=len(quarantined) + len(suspects.to_quarantine),
        old_launches=suspects.launches,
    )


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
