"""Number of finished images over time, recorded by the condense job."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from idc_ray.errors import IdcError
from idc_ray.store.filesystem import StorageFolder

TIMELINE = "timeline.json"

#: Points of a curve of throughput: each is a mean over one such part of the launch.
PARTS = 60


@dataclass(frozen=True)
class Launch:
    """One attempt of a condense job.

    Attributes:
        started: start time, ISO 8601, UTC.
        device: ``CPUs`` or ``GPUs``.
        workers: maximum number of workers; 0: not known.
        points: (seconds since the start, images done or quarantined by this attempt), ascending.
    """

    started: str
    device: str
    workers: int
    points: list[tuple[float, int]]

    def rates(self) -> list[tuple[float, float]]:
        """(seconds, images per second), averaged over intervals of about 1 / `PARTS` of the attempt."""
        if len(self.points) < 2:
            return []
        least = (self.points[-1][0] - self.points[0][0]) / PARTS
        kept = [self.points[0]]
        for point in self.points[1:]:
            if point[0] - kept[-1][0] >= least and point[0] > kept[-1][0]:
                kept.append(point)
        return [(after[0], (after[1] - before[1]) / (after[0] - before[0])) for before, after in pairwise(kept)]


def read_timeline(storage: StorageFolder) -> list[Launch]:
    """Attempts of an output in order; empty if nothing was recorded or it cannot be read."""
    try:
        stored = storage.read_json(TIMELINE, "") or {}
        return [
            Launch(
                each["started"], each["device"], int(each["workers"]), [(float(t), int(n)) for t, n in each["points"]]
            )
            for each in stored.get("launches", [])
        ]
    except (IdcError, KeyError, TypeError, ValueError):
        return []
