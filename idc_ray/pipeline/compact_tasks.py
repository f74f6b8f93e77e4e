"""Compacts a shard when the last image of its range is finished."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque

import pyarrow as pa
import ray
from ray.exceptions import RayError

from idc_ray.errors import IdcError
from idc_ray.interrupt import check_interrupted
from idc_ray.pipeline.stopping import as_row, raise_from
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder
from idc_ray.store.index import list_pending
from idc_ray.store.layout import shard_of, shard_parts
from idc_ray.store.parts import list_parts

log = logging.getLogger(__name__)

#: Seconds between two checks of the running tasks.
CHECK_SECONDS = 0.5


class Compactor:
    """Counts the unfinished images of each shard's range, and compacts complete ranges by Ray tasks.

    The single shard of a small run is left to :func:`compact_rest`.

    Args:
        store: the output; this process holds its lock.
        digest: digest of the run.
        shard_count: number of shards of the run.
        unfinished: ids of unfinished images.
    """

    def __init__(self, store: StorageFolder, digest: str, shard_count: int, unfinished: pa.ChunkedArray) -> None:
        self._store, self._digest, self._count = store, digest, shard_count
        self._left = Counter(shard_of(image_id, shard_count) for image_id in unfinished.to_pylist())
        self._waiting: deque[int] = deque()
        self._running: list[ray.ObjectRef] = []
        self._checked_at = 0.0

    def finished(self, image_id: str) -> None:
        """Record that an image is done or quarantined, and compact its shard if it was the last.

        Raises:
            IdcError: a shard could not be compacted.
        """
        shard = shard_of(image_id, self._count)
        self._left[shard] -= 1
        if self._left[shard] == 0 and self._count > 1:
            self._waiting.append(shard)
        if (self._waiting or self._running) and time.monotonic() - self._checked_at > CHECK_SECONDS:
            self._advance(0)

    def wait(self) -> None:
        """Wait until all complete ranges are compacted; errors as of :meth:`finished`."""
        while self._waiting or self._running:
            self._advance(CHECK_SECONDS)
            check_interrupted()

    def _advance(self, seconds: float) -> None:
        if self._running:
            done, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=seconds)
            for each in done:
                try:
                    raise_from(ray.get(each))
                except RayError as error:  # its machine is gone, or short of memory
                    log.warning("a shard could not be compacted by a task (%s); it is done at the end", error)
        most = max(2, int(ray.cluster_resources().get("CPU", 0)) // 8) if self._waiting else 0
        while self._waiting and len(self._running) < most:
            self._running.append(_task().remote(self._store, self._digest, self._waiting.popleft(), self._count))
        self._checked_at = time.monotonic()


def compact_rest(store: StorageFolder, digest: str, shard_count: int) -> None:
    """Compact the remaining parts in this process, and finish interrupted compactions."""
    left = shard_parts(list_parts(store, digest), shard_count).keys() | set(list_pending(store))
    for shard in sorted(left):
        compact(store, digest, shard, shard_count)


def _task() -> ray.remote_function.RemoteFunction:
    # No CPU: the workers have all of them. A task that is killed is repeated: compaction can be, at any point.
    return ray.remote(num_cpus=0, max_retries=3, scheduling_strategy="SPREAD")(_compact)


def _compact(store: StorageFolder, digest: str, shard: int, shard_count: int) -> dict[str, object]:
    try:
        compact(store, digest, shard, shard_count)
    except (IdcError, OSError) as error:
        return as_row(error if isinstance(error, IdcError) else IdcError(f"shard {shard} cannot be written: {error}"))
    return {}
