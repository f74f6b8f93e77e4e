"""Which files of an output folder are the store's own. A user's files beside them are never touched."""

from __future__ import annotations

import re
from collections.abc import Iterator

from idc_ray.store import atomic
from idc_ray.store.filesystem import Place
from idc_ray.store.layout import ATTEMPTS, DAMAGED, INDEX, INFLIGHT, MANIFEST, PARTS, QUARANTINE, SHARDS
from idc_ray.store.threads import ordered_map

__all__ = ["abandoned", "has_data", "remove_all", "remove_empty_part_folders", "sweep"]

# Top folder -> (depth of the files below it, their names). In the order of removal: a reader that sees no manifest
# and no shard takes nothing for a finished run.
_OWNED = {
    SHARDS: (0, re.compile(r"part-\d{5}\.parquet")),
    INDEX: (0, re.compile(r"part-\d{5}\.(parquet|pending\.json)")),
    PARTS: (2, re.compile(r"[0-9a-f]{16}\.parquet")),
    QUARANTINE: (1, re.compile(r"[0-9a-f]{16}\.json")),
    INFLIGHT: (1, re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.json")),
    ATTEMPTS: (1, re.compile(r"(worker|launch)-[A-Za-z0-9_-][A-Za-z0-9._-]*\.json")),
    DAMAGED: (0, re.compile(r"((shards|index|parts|quarantine)-.+\.|run\.|manifest\.)(parquet|json)")),
}


def has_data(place: Place) -> bool:
    """Whether there is any result in the output: a manifest, a shard, an index or a part."""
    return place.size(MANIFEST) is not None or any(
        pattern.fullmatch(name)
        for top in (SHARDS, INDEX, PARTS)
        for depth, pattern in [_OWNED[top]]
        for folder in _folders(place, top, depth)
        for name in place.files(folder)
    )


def remove_all(place: Place) -> None:
    """Removes everything that the store writes, except ``run.json`` and the lock; may be repeated after a kill."""
    place.delete(MANIFEST)
    place.sync("")
    for top, (depth, pattern) in _OWNED.items():
        folders = list(_folders(place, top, depth))
        for folder in folders:
            names = [f"{folder}/{name}" for name in place.files(folder) if pattern.fullmatch(name)]
            for _ in ordered_map(place.delete, names):
                pass
            place.sync(folder)  # an old shard that comes back after a power cut would be taken for the new run's
        _remove_empty(place, folders)


def remove_empty_part_folders(place: Place) -> None:
    """Removes the local folders in which the parts were."""
    _remove_empty(place, list(_folders(place, PARTS, 2)))


def sweep(place: Place) -> int:
    """Removes temporary files of dead writers, and says how many; an object store has none."""
    return sum(atomic.sweep(place.path(folder)) for folder in _written_folders(place))


def abandoned(place: Place) -> list[str]:
    """Names of the temporary files that :func:`sweep` would remove."""
    folders = {folder: atomic.abandoned(place.path(folder)) for folder in _written_folders(place)}
    return [f"{folder}/{name}".lstrip("/") for folder, names in folders.items() for name in names]


def _written_folders(place: Place) -> list[str]:
    """The local folders in which temporary files may be."""
    if not place.is_local:
        return []
    return ["", *(folder for top, (depth, _) in _OWNED.items() for folder in _folders(place, top, depth))]


def _folders(place: Place, top: str, depth: int) -> Iterator[str]:
    if depth == 0:
        yield top
        return
    for parent in _folders(place, top, depth - 1):
        for name in place.folders(parent):
            yield f"{parent}/{name}"


def _remove_empty(place: Place, folders: list[str]) -> None:
    parents = {folder[:cut] for folder in folders for cut in _cuts(folder)}
    for folder in sorted(parents, key=len, reverse=True):  # deepest first: a parent's name is shorter
        place.remove_if_empty(folder)


def _cuts(folder: str) -> list[int]:
    return [match.start() for match in re.finditer("/", folder)] + [len(folder)]
