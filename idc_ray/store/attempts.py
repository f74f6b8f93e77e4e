"""Crashes that count against an image: one file each, named by the crash.

So counting is durable, needs no lock, and one crash is not counted twice. The caller decides what counts.
"""

from __future__ import annotations

from typing import Literal

from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.layout import ATTEMPTS, attempt_name, check_image_id

AttemptKind = Literal["worker", "launch"]


def count_attempt(storage: StorageFolder, image_id: str, kind: AttemptKind, token: str) -> int:
    """Count one attempt against an image.

    Args:
        storage: the output.
        image_id: the image.
        kind: ``worker``: a process died over this image alone; ``launch``: an attempt of the job was killed while it
            ran alone.
        token: name of the crash; the same token counts once.

    Returns:
        Number of attempts of this kind that the image has now.
    """
    storage.write_json(attempt_name(image_id, kind, token), {"image_id": image_id, "kind": kind, "token": token})
    names = storage.files(f"{ATTEMPTS}/{image_id}")
    return sum(name.startswith(f"{kind}-") and name.endswith(".json") for name in names)


def clear_attempts(storage: StorageFolder, image_id: str) -> None:
    """Remove all records of an image."""
    folder = f"{ATTEMPTS}/{check_image_id(image_id)}"
    for name in storage.files(folder):
        if name.endswith(".json"):
            storage.delete(f"{folder}/{name}")
    storage.remove_if_empty(folder)
