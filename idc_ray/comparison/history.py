"""Seconds and validation PSNR of a training by step, stored next to its state."""

from __future__ import annotations

import math
import time
from typing import Any

from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.fit import Event

__all__ = ["History"]

FILE = "history.json"

#: Least seconds between two writes that no validation asks for.
WRITE_SECONDS = 20.0


Point = tuple[int, float, float | None]


class History:
    """Records the events of a training.

    Points of earlier attempts are kept up to the state from which the training continues. Seconds are training time:
    validation, and steps that were lost by a kill, do not count.

    Args:
        storage: folder of the training's state.

    Attributes:
        points: (step, seconds so far, PSNR in dB or None), by ascending step. Seconds of a validation are at the rate
            before until the next progress event has a rate.
    """

    def __init__(self, storage: StorageFolder) -> None:
        self._storage = storage
        stored = storage.read_json(FILE, "delete its folder to start the training again") or {}
        self._before: list[Point] = [(p[0], p[1], p[2]) for p in stored.get("points", [])]
        self.points: list[Point] = []
        self._sure = 0  # points before the first whose seconds are to be mended
        self._seconds_per_step: float = stored.get("seconds_per_step", 0.0)
        self._written_at = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training up to the last event."""
        return self.points[-1][1] if self.points else 0.0

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(step, PSNR) of the validations."""
        return [(step, psnr) for step, _, psnr in self.points if psnr is not None]

    def report(self, event: Event) -> None:
        """Record an event of :func:`idc_ray.training.fit.fit`."""
        step = event["step"]
        match event["kind"]:
            case "resumed":
                self._rewind(step)
            case "progress":
                self._seconds_per_step = 1 / max(event["steps_per_second"], 1e-9)
                unsure, self.points = self.points[self._sure :], self.points[: self._sure]
                for point in unsure:
                    self._add(point[0], point[2])
                self._add(step, None)
                self._sure = len(self.points)
            case "validation":
                self._add(step, event["psnr"] if math.isfinite(event["psnr"]) else None)
                self._write()
        if time.monotonic() - self._written_at >= WRITE_SECONDS:
            self._write()

    def _rewind(self, step: int) -> None:
        """Drop points after ``step``, from which the training continues: their events are repeated."""
        self.points = [point for point in self._before if point[0] <= step]
        self._add(step, None)
        self._sure = len(self.points)

    def _add(self, step: int, psnr: float | None) -> None:
        before = self.points[-1] if self.points else (0, 0.0, None)
        if step > before[0] or psnr is not None:
            self.points.append((step, before[1] + (step - before[0]) * self._seconds_per_step, psnr))

    def _write(self) -> None:
        self._written_at = time.monotonic()
        value: dict[str, Any] = {"points": self.points, "seconds_per_step": self._seconds_per_step}
        self._storage.write_json(FILE, value)
