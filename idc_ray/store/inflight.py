"""What each actor is working on: known to the next launch when this one is killed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import Place
from idc_ray.store.layout import INFLIGHT, inflight_name
from idc_ray.store.threads import ordered_map

__all__ = ["Inflight", "clear_inflight", "end_launch", "find_inflight", "read_inflight", "write_inflight"]

_FIX = "delete that file: what it lists is done like any other image"


@dataclass(frozen=True)
class Inflight:
    """The images that an actor has begun and not committed.

    Args:
        images: their ids.
        alone: whether an image was rerun by itself, so that a death can be put down to it.
        node_id: where the actor runs.
        pid: its process.
        started: when it began these, seconds since 1970.
        launch: filled in by `write_inflight`.
        actor: likewise.
    """

    images: list[str]
    alone: bool
    node_id: str
    pid: int
    started: float
    launch: str = ""
    actor: str = ""


def write_inflight(place: Place, launch: str, actor: str, inflight: Inflight) -> None:
    """States what an actor is working on, in place of what it stated before."""
    place.write_json(inflight_name(launch, actor), asdict(replace(inflight, launch=launch, actor=actor)))


def clear_inflight(place: Place, launch: str, actor: str) -> None:
    """States that an actor works on nothing."""
    place.delete(inflight_name(launch, actor))


def find_inflight(place: Place, launch: str, actor: str) -> Inflight | None:
    """What one actor works on or was killed over, None if nothing.

    Raises:
        IdcError: its file cannot be read.
    """
    return _read(place, inflight_name(launch, actor))


def read_inflight(place: Place, launch: str | None = None, without: str | None = None) -> list[Inflight]:
    """What the actors of one launch, or of all, work on or were killed over; sorted by launch and actor.

    Args:
        place: the output.
        launch: which one; None: all.
        without: leave out, unread, actors whose names begin so.

    Raises:
        IdcError: a file cannot be read.
    """
    launches = place.folders(INFLIGHT) if launch is None else [launch]
    names = [name for one in launches for name in _names(place, one)]
    if without is not None:
        names = [name for name in names if not name.rpartition("/")[2].startswith(without)]
    found = ordered_map(lambda name: _read(place, name), names)
    return [inflight for inflight in found if inflight is not None]


def end_launch(place: Place, launch: str) -> None:
    """Forgets a launch that ended cleanly, or whose images have been dealt with."""
    for name in _names(place, launch):
        place.delete(name)
    place.remove_if_empty(f"{INFLIGHT}/{launch}")


def _names(place: Place, launch: str) -> list[str]:
    folder = f"{INFLIGHT}/{launch}"
    return [f"{folder}/{name}" for name in place.files(folder) if name.endswith(".json")]


def _read(place: Place, name: str) -> Inflight | None:
    value = place.read_json(name, _FIX)  # None: its actor has just finished
    try:
        return None if value is None else Inflight(**value)
    except TypeError as error:
        raise IdcError(f"{place.shown(name)} is not an in-flight record ({error}); {_FIX}") from error
