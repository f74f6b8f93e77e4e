"""Records the number of finished images over time, for the report."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from typing import Any

from idc_ray.errors import IdcError
from idc_ray.report.timeline import TIMELINE
from idc_ray.store.filesystem import StorageFolder

#: Most points of a launch; with more, every second one is dropped.
POINTS = 400

#: Least seconds between two points, and between two writes.
POINT_SECONDS, WRITE_SECONDS = 2.0, 30.0


class Timeline:
    """Timelines of the attempts of an output; this one is added to the recorded ones.

    Args:
        storage: the output.
        fresh: discard the recorded ones, as the run is discarded.
    """

    def __init__(self, storage: StorageFolder, fresh: bool) -> None:
        self._storage, self._ended = storage, 0
        self._launches: list[dict[str, Any]] = []
        if not fresh:
            with contextlib.suppress(IdcError, TypeError):  # only a picture depends on it
                self._launches = list((storage.read_json(TIMELINE, "") or {}).get("launches", []))
        self._launch: dict[str, Any] | None = None
        self._began = self._recorded = self._written = 0.0

    def begin(self, device: str, workers: int) -> None:
        """Record the start of the workers; later calls do nothing."""
        if self._launch is not None:
            return
        started = datetime.now(UTC).isoformat(timespec="seconds")
        self._launch = {"started": started, "device": device, "workers": workers, "points": [(0.0, 0)]}
        self._launches.append(self._launch)
        self._began = self._recorded = self._written = time.monotonic()

    def add(self) -> None:
        """Record that an image is done or quarantined."""
        self._ended += 1
        now = time.monotonic()
        if now - self._recorded >= POINT_SECONDS:
            self._point(now)
        if now - self._written >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the timeline, if the workers have started."""
        if self._launch is None:
            return
        self._point(time.monotonic())
        self._written = time.monotonic()
        with contextlib.suppress(OSError, IdcError):
            self._storage.write_json(TIMELINE, {"launches": self._launches})

    def _point(self, now: float) -> None:
        assert self._launch is not None
        self._recorded = now
        points = self._launch["points"]
        if points[-1][1] == self._ended:
            return
        points.append((round(now - self._began, 2), self._ended))
        if len(points) > POINTS:
            del points[1:-1:2]
