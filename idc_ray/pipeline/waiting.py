"""Says what a job waits for until its first image is done: a cluster may have to grow, or have no room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import ray

from idc_ray.pipeline.cluster import PoolPlan
from idc_ray.pipeline.progress import duration

__all__ = ["told_while_waiting", "what_is_awaited"]

log = logging.getLogger(__name__)

#: Seconds between two lines.
EVERY = 30.0

Item = TypeVar("Item")


def told_while_waiting(items: Iterable[Item], pool: PoolPlan, every: float = EVERY) -> Iterator[Item]:
    """``items``, with a line in the log now and then until the first of them is there."""
    first = threading.Event()

    def tell() -> None:
        begin = time.monotonic()
        while not first.wait(every):
            log.info("no image is done after %s; %s", duration(time.monotonic() - begin), what_is_awaited(pool))

    threading.Thread(target=tell, name="waiting", daemon=True).start()
    try:
        for item in items:
            first.set()
            yield item
    finally:
        first.set()


def what_is_awaited(pool: PoolPlan) -> str:
    """Such as ``each of 1 to 4 workers takes 1 GPU, of which 0 of 2 are free``."""
    name, amount = next(("GPU", n) if key == "num_gpus" else ("CPU", n) for key, n in pool.options.items())
    total, free = ray.cluster_resources().get(name, 0.0), ray.available_resources().get(name, 0.0)
    workers = f"{pool.min_size}" if pool.min_size == pool.max_size else f"{pool.min_size} to {pool.max_size}"
    return f"each of {workers} workers takes {amount:g} {name}, of which {free:g} of {total:g} are free"
