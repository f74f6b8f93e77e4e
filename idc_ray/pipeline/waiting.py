"""Logs what a job waits for until its first image is done."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import ray

from idc_ray.pipeline.cluster import PoolPlan
from idc_ray.pipeline.progress import LOG_SECONDS, Heartbeat
from idc_ray.units import duration

log = logging.getLogger(__name__)

#: Seconds between two lines.
EVERY = LOG_SECONDS

Item = TypeVar("Item")


def log_until_first(
    items: Iterable[Item], missing: str, awaited: Callable[[], str], every: float = EVERY
) -> Iterator[Item]:
    """Pass ``items`` on, and log periodically until the first one arrives; None does not count.

    Args:
        items: the items.
        missing: text such as ``no image is done``.
        awaited: returns what the job waits for.
        every: seconds between log lines.
    """
    begin = time.monotonic()
    with Heartbeat(lambda: f"{missing} after {duration(time.monotonic() - begin)}; {awaited()}", every) as heartbeat:
        for item in items:
            if item is not None:
                heartbeat.stop()
            yield item


def warn_if_no_room(pool: PoolPlan) -> None:
    """Log if the cluster has no resources for a single worker."""
    name, amount = _one_worker(pool)
    if ray.cluster_resources().get(name, 0.0) < amount:
        log.info("waiting for the cluster to grow; %s", what_is_awaited(pool))


def what_is_awaited(pool: PoolPlan, work: str = "") -> str:
    """Such as ``each of 1 to 4 workers takes 1 GPU, of which 0 of 2 are free``.

    If workers have images, ``work`` is shown instead.
    """
    if work:
        return f"workers: {work}"
    name, amount = _one_worker(pool)
    total, free = ray.cluster_resources().get(name, 0.0), ray.available_resources().get(name, 0.0)
    text = f"each of {pool.sizes} workers takes {amount:g} {name}, of which {free:g} of {total:g} are free"
    return f"workers are starting, or wait for room: {text}" if free < amount <= total else text


def _one_worker(pool: PoolPlan) -> tuple[str, float]:
    """The resource that limits the pool, and the amount for one worker."""
    return next(("GPU", n) if key == "num_gpus" else ("CPU", n) for key, n in pool.options.items())
