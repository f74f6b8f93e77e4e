"""Metrics of a worker, for Ray's dashboard and the Prometheus endpoint of its node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from ray.util.metrics import Counter, Gauge, Histogram

#: Borders of the histogram, in seconds: a thumbnail on a GPU takes milliseconds, a 2K image on a CPU minutes.
SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]


class WorkerMetrics:
    """Metrics of one worker; Ray adds labels for process and node.

    Their names in Prometheus are ``ray_idc_images_done_total``, ``ray_idc_images_failed_total``,
    ``ray_idc_busy_seconds_total``, ``ray_idc_image_seconds`` (a histogram, whose sum Ray estimates from its buckets)
    and ``ray_idc_gpu_memory_bytes``, each with the label ``run``.

    Args:
        run: digest of the run, a label.
        device: device of the worker.
    """

    def __init__(self, run: str, device: torch.device) -> None:
        self._device = device
        self._done = Counter("idc_images_done", "Images condensed and committed.", ("run",))
        self._failed = Counter("idc_images_failed", "Images that were quarantined.", ("run",))
        self._busy = Counter("idc_busy_seconds", "Workers' seconds for finished images.", ("run",))
        self._seconds = Histogram("idc_image_seconds", "Worker's seconds per image.", SECONDS, ("run",))
        self._memory = Gauge("idc_gpu_memory_bytes", "GPU memory reserved by the worker's torch.", ("run",))
        for metric in (self._done, self._failed, self._busy, self._seconds, self._memory):
            metric.set_default_tags({"run": run})

    def update(self, statuses: Iterable[Mapping[str, Any]]) -> None:
        """Count the status rows of a batch."""
        for status in statuses:
            if status["outcome"] == "done":
                self._done.inc()
                seconds = sum(status["seconds"].values())
                self._busy.inc(max(seconds, 1e-9))  # Ray refuses to add nothing
                self._seconds.observe(seconds)
            elif status["outcome"] == "quarantined":
                self._failed.inc()
        if self._device.type == "cuda":
            self._memory.set(torch.cuda.memory_reserved(self._device))
