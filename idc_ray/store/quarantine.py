"""Failed images, each with its reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, replace

from idc_ray.redact import redact_within
from idc_ray.store import attempts
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import QUARANTINE, check_name, is_image_id, quarantine_name
from idc_ray.store.threads import ordered_map
from idc_ray.store.typed_json import read_record

_FIX = "delete that file to retry the image"


@dataclass(frozen=True)
class QuarantineEntry:
    """A quarantined image.

    Args:
        image_id: first 16 hex digits of sha256 of the source's relative POSIX path.
        source: that path.
        code: short, stable slug of the kind of fault.
        reason: a sentence that a person understands.
        traceback: for developers; empty where there is none.
        attempts: number of attempts.
        launch: the attempt of the job that quarantined it.
        time: when, ISO 8601 with UTC offset.
    """

    image_id: str
    source: str
    code: str
    reason: str
    traceback: str
    attempts: int
    launch: str
    time: str


def quarantine_image(storage: StorageFolder, digest: str, entry: QuarantineEntry) -> None:
    """Quarantine an image, durably; a later entry of the same image replaces it."""
    entry = replace(entry, reason=redact_within(entry.reason), traceback=redact_within(entry.traceback))
    storage.write_json(quarantine_name(digest, entry.image_id), asdict(entry))


def quarantined_ids(storage: StorageFolder, digest: str) -> set[str]:
    """The ids of the quarantined images; opens no file."""
    names = storage.files(f"{QUARANTINE}/{check_name(digest, 'digest')}")
    ids = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return {image_id for image_id in ids if is_image_id(image_id)}


def list_quarantined(storage: StorageFolder, digest: str) -> list[QuarantineEntry]:
    """The entries of all quarantined images, sorted by id.

    Raises:
        IdcError: an entry cannot be read.
    """
    return read_quarantined(storage, digest, sorted(quarantined_ids(storage, digest)))


def read_quarantined(storage: StorageFolder, digest: str, image_ids: Iterable[str]) -> list[QuarantineEntry]:
    """The entries of some images, in that order, without those that are not (or no longer) quarantined.

    Raises:
        IdcError: an entry cannot be read.
    """
    found = ordered_map(lambda image_id: _read(storage, digest, image_id), image_ids)
    return [entry for entry in found if entry is not None]


def release_quarantined(
    storage: StorageFolder, digest: str, image_ids: Collection[str] | None = None
) -> list[QuarantineEntry]:
    """Release quarantined images for a retry, all of them for None; returns their entries, which are deleted.

    Their counted attempts are cleared too, otherwise the first failure would quarantine the image again.
    """
    entries = list_quarantined(storage, digest) if image_ids is None else read_quarantined(storage, digest, image_ids)

    def release(entry: QuarantineEntry) -> None:
        attempts.clear_attempts(storage, entry.image_id)  # first, so that after a kill the image is still quarantined
        storage.delete(quarantine_name(digest, entry.image_id))

    for _ in ordered_map(release, entries):
        pass
    return entries


def _read(storage: StorageFolder, digest: str, image_id: str) -> QuarantineEntry | None:
    name = quarantine_name(digest, image_id)
    return read_record(storage, name, QuarantineEntry, "is not a quarantine entry", _FIX)
