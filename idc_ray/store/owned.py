"""The files of an output that the store writes. A user's files next to them are never touched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from idc_ray.store import atomic
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import ATTEMPTS, DAMAGED, INDEX, INFLIGHT, MANIFEST, PARTS, QUARANTINE, SHARDS, SURVEY
from idc_ray.store.threads import ordered_map

# Top folder -> (depth of the files below it, their names). In the order of removal: a reader that sees no manifest
# and no shard takes nothing for a finished run.
_OWNED = {
    SHARDS: (0, re.compile(r"part-\d{5}\.parquet")),
    INDEX: (0, re.compile(r"part-\d{5}\.(parquet|pending\.json)")),
    PARTS: (2, re.compile(r"[0-9a-f]{16}(-\d{1,6}-[0-9a-f]{8})?\.parquet")),
    QUARANTINE: (1, re.compile(r"[0-9a-f]{16}\.json")),
    INFLIGHT: (1, re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.json")),
    ATTEMPTS: (1, re.compile(r"(worker|launch)-[A-Za-z0-9_-][A-Za-z0-9._-]*\.json")),
    DAMAGED: (0, re.compile(r"((shards|index|parts|quarantine)-.+\.|run\.|manifest\.)(parquet|json)")),
}


def has_data(storage: StorageFolder) -> bool:
    """Whether there is any result in the output: a manifest, a shard, an index or a part."""
    return storage.size(MANIFEST) is not None or any(
        pattern.fullmatch(name)
        for top in (SHARDS, INDEX, PARTS)
        for depth, pattern in [_OWNED[top]]
        for folder in _folders(storage, top, depth)
        for name in storage.files(folder)
    )


def remove_all(storage: StorageFolder) -> None:
    """Remove everything that the store writes, except ``run.json`` and the lock; may be repeated after a kill."""
    storage.delete(MANIFEST)
    storage.delete(SURVEY)
    storage.sync("")
    for top, (depth, pattern) in _OWNED.items():
        folders = list(_folders(storage, top, depth))
        for folder in folders:
            names = [f"{folder}/{name}" for name in storage.files(folder) if pattern.fullmatch(name)]
            for _ in ordered_map(storage.delete, names):
                pass
            storage.sync(folder)  # an old shard that comes back after a power cut would be taken for the new run's
        _remove_empty(storage, folders)


def remove_empty_folders(storage: StorageFolder) -> None:
    """Remove the empty local folders of parts and batches, which a finished run does not need."""
    _remove_empty(storage, [*_folders(storage, PARTS, 2), *_folders(storage, INFLIGHT, 1), INFLIGHT])


def sweep(storage: StorageFolder) -> int:
    """Remove temporary files of dead writers; returns their number. An object store has none."""
    return sum(atomic.sweep(storage.path(folder)) for folder in _written_folders(storage))


def abandoned(storage: StorageFolder) -> list[str]:
    """Names of the temporary files that :func:`sweep` would remove."""
    folders = {folder: atomic.abandoned(storage.path(folder)) for folder in _written_folders(storage)}
    return [f"{folder}/{name}".lstrip("/") for folder, names in folders.items() for name in names]


def _written_folders(storage: StorageFolder) -> list[str]:
    """The local folders in which temporary files may be."""
    if not storage.is_local:
        return []
    return ["", *(folder for top, (depth, _) in _OWNED.items() for folder in _folders(storage, top, depth))]


def _folders(storage: StorageFolder, top: str, depth: int) -> Iterator[str]:
    if depth == 0:
        yield top
        return
    for parent in _folders(storage, top, depth - 1):
        for name in storage.folders(parent):
            yield f"{parent}/{name}"


def _remove_empty(storage: StorageFolder, folders: list[str]) -> None:
    with_parents = {path for folder in folders for path in (PurePosixPath(folder), *PurePosixPath(folder).parents)}
    for path in sorted(with_parents - {PurePosixPath(".")}, key=lambda path: -len(path.parts)):  # deepest first
        storage.remove_if_empty(str(path))
