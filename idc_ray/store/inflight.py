"""The batches that processes are working on: known to the next launch when this one is killed."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace

from idc_ray.errors import IdcError
from idc_ray.object_stores import StoreUnavailable
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import INFLIGHT, inflight_name
from idc_ray.store.threads import ordered_map
from idc_ray.store.typed_json import read_record

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inflight:
    """The images that an actor has begun and not committed.

    Args:
        images: their ids.
        isolated: whether an image runs alone, so that a death can be attributed to it.
        node_id: where the actor runs.
        pid: its process.
        started: time of their start, seconds since 1970.
        source: path of the first image, for messages; empty if not known.
        launch: filled in by `write_inflight`.
        actor: name of the batch; likewise.
    """

    images: list[str]
    isolated: bool
    node_id: str
    pid: int
    started: float
    source: str = ""
    launch: str = ""
    actor: str = ""


def write_inflight(storage: StorageFolder, launch: str, actor: str, inflight: Inflight) -> None:
    """Record what an actor works on, in place of its earlier record."""
    storage.write_json(inflight_name(launch, actor), asdict(replace(inflight, launch=launch, actor=actor)))


def clear_inflight(storage: StorageFolder, launch: str, actor: str) -> None:
    """Remove the record of an actor."""
    storage.delete(inflight_name(launch, actor))


def find_inflight(storage: StorageFolder, launch: str, actor: str) -> Inflight | None:
    """What one actor works on or was killed over, None if nothing."""
    return _read(storage, inflight_name(launch, actor))


def read_inflight(storage: StorageFolder, launch: str | None = None, without: str | None = None) -> list[Inflight]:
    """What the actors of one launch, or of all, work on or were killed over; sorted by launch and actor.

    Args:
        storage: the output.
        launch: which one; None: all.
        without: leave out, unread, actors whose names begin so.
    """
    launches = storage.folders(INFLIGHT) if launch is None else [launch]
    names = [name for one in launches for name in _names(storage, one)]
    if without is not None:
        names = [name for name in names if not name.rpartition("/")[2].startswith(without)]
    found = ordered_map(lambda name: _read(storage, name), names)
    return [inflight for inflight in found if inflight is not None]


def end_launch(storage: StorageFolder, launch: str) -> None:
    """Remove the records of a launch that ended cleanly, or whose images have been dealt with."""
    for name in _names(storage, launch):
        storage.delete(name)
    storage.remove_if_empty(f"{INFLIGHT}/{launch}")


def _names(storage: StorageFolder, launch: str) -> list[str]:
    folder = f"{INFLIGHT}/{launch}"
    return [f"{folder}/{name}" for name in storage.files(folder) if name.endswith(".json")]


def _read(storage: StorageFolder, name: str) -> Inflight | None:
    """A record, None if its actor has just finished; a damaged one, as a power failure leaves, has no images."""
    try:
        return read_record(storage, name, Inflight, "is not an in-flight record", "it is ignored")
    except StoreUnavailable:
        raise
    except IdcError as error:
        _logger.warning("%s is ignored, its images are condensed like others: %s", storage.shown(name), error)
        _, launch, actor = name.split("/")
        return Inflight([], False, "", 0, 0.0, launch=launch, actor=actor.removesuffix(".json"))
