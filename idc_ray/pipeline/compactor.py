"""Compacts a shard when the last image of its range is finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from idc_ray.store import compact, list_parts, list_pending, shard_of
from idc_ray.store.filesystem import StorageFolder

__all__ = ["Compactor"]


class Compactor:
    """Counts the unfinished images of each shard's range.

    Args:
        store: the output; this process holds its lock.
        digest: digest of the run.
        shard_count: number of shards of the run.
        unfinished: ids of unfinished images.
    """

    def __init__(self, store: StorageFolder, digest: str, shard_count: int, unfinished: Iterable[str]) -> None:
        self._store, self._digest, self._count = store, digest, shard_count
        self._left = Counter(shard_of(image_id, shard_count) for image_id in unfinished)

    def finished(self, image_id: str) -> None:
        """Record that an image is done or quarantined, and compact its shard if it was the last."""
        shard = shard_of(image_id, self._count)
        self._left[shard] -= 1
        if self._left[shard] == 0:
            compact(self._store, self._digest, shard, self._count)

    def finish(self) -> None:
        """Compact the remaining parts of earlier attempts, and finish interrupted compactions."""
        waiting = {shard_of(image_id, self._count) for image_id in list_parts(self._store, self._digest)}
        for shard in sorted(waiting | set(list_pending(self._store))):
            compact(self._store, self._digest, shard, self._count)
