"""What the output of a test says of crashes."""

from __future__ import annotations

from collections import Counter

from idc_ray.store.filesystem import StorageFolder

__all__ = ["list_attempts"]


def list_attempts(storage: StorageFolder) -> dict[str, dict[str, int]]:
    """Attempts that count against images, of all images that have any."""
    found = {}
    for image_id in storage.folders("attempts"):
        kinds = Counter(name.partition("-")[0] for name in storage.files(f"attempts/{image_id}"))
        if kinds:
            found[image_id] = {kind: kinds[kind] for kind in ("worker", "launch")}
    return found
