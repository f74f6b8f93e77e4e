"""Crashes that count against an image: one file each, named by the crash.

So counting is durable, needs no lock, and one crash is not counted twice. The caller decides what counts.
"""

from __future__ import annotations

from typing import Literal, get_args

from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import ATTEMPTS, attempt_name, check_image_id, is_image_id
from idc_ray.store.threads import ordered_map

AttemptKind = Literal["worker", "launch"]


def count_attempt(storage: StorageFolder, image_id: str, kind: AttemptKind, token: str) -> int:
    """Count one attempt against an image.

    Args:
        storage: the output.
        image_id: the image.
        kind: ``worker``: the process that did it alone died; ``launch``: a launch ended while it ran alone.
        token: names the death, such as the launch with the actor and its process; the same token counts once.

    Returns:
        How many attempts of this kind the image has now.
    """
    if kind not in get_args(AttemptKind):
        raise ValueError(f"kind of attempt is {kind!r}; expected {' or '.join(get_args(AttemptKind))}")
    storage.write_json(attempt_name(image_id, kind, token), {"image_id": image_id, "kind": kind, "token": token})
    return count_attempts(storage, image_id)[kind]


def count_attempts(storage: StorageFolder, image_id: str) -> dict[AttemptKind, int]:
    """How many attempts of each kind an image has."""
    counts: dict[AttemptKind, int] = dict.fromkeys(get_args(AttemptKind), 0)
    for name in storage.files(f"{ATTEMPTS}/{check_image_id(image_id)}"):
        kind = name.partition("-")[0]
        if kind in counts and name.endswith(".json"):
            counts[kind] += 1
    return counts


def list_attempts(storage: StorageFolder) -> dict[str, dict[AttemptKind, int]]:
    """The same for all images that have any."""
    image_ids = [name for name in storage.folders(ATTEMPTS) if is_image_id(name)]
    found = dict(
        zip(image_ids, ordered_map(lambda image_id: count_attempts(storage, image_id), image_ids), strict=True)
    )
    return {image_id: counts for image_id, counts in found.items() if any(counts.values())}


def clear_attempts(storage: StorageFolder, image_id: str) -> None:
    """Remove all records of an image."""
    folder = f"{ATTEMPTS}/{check_image_id(image_id)}"
    for name in storage.files(folder):
        if name.endswith(".json"):
            storage.delete(f"{folder}/{name}")
    storage.remove_if_empty(folder)
