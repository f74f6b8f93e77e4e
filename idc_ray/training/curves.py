"""Loss, rate, seconds, PSNR and samples of a training over its steps, kept in its output."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from idc_ray.errors import IdcError
from idc_ray.report.training import CURVES, sample_name
from idc_ray.store.filesystem import StorageFolder
from idc_ray.training.fit import Event

#: Most points of a curve, and most validations with pictures; with more, every second one is dropped.
POINTS, SAMPLES = 1000, 12

#: Side of a crop of a validation image in a sample, in pixels.
CROP = 128

#: Least seconds between two writes that no validation asks for.
WRITE_SECONDS = 30.0


class Curves:
    """Records a training's events. A failure to write is no failure of the training.

    Points of earlier attempts are kept up to the state from which the training continues. Seconds are training time:
    validation, and steps that were lost by a kill, do not count.

    Args:
        storage: the training's output.
        fresh: forget what is there, as the training starts from nothing.

    Attributes:
        seconds: training time up to the last event.
    """

    def __init__(self, storage: StorageFolder, fresh: bool) -> None:
        self._storage = storage
        stored: dict[str, Any] = {}
        with contextlib.suppress(IdcError):
            stored = storage.read_json(CURVES, "") or {}
        self._points: list[list[float]] = stored.get("points", [])
        self._validations: list[list[float | None]] = stored.get("validations", [])
        self._samples: list[int] = stored.get("samples", [])
        if fresh:
            self._rewind(-1)
        self._step, self.seconds = 0, 0.0
        self._written = time.monotonic()

    @property
    def psnrs(self) -> list[tuple[int, float]]:
        """(step, PSNR) of the validations; infinite ones are left out."""
        return [(int(step or 0), psnr) for step, psnr in self._validations if psnr is not None]

    def report(self, event: Event) -> None:
        """Record an event of :class:`idc_ray.training.fit.Fit`, pictures as PNG."""
        step = event["step"]
        match event["kind"]:
            case "resumed":
                self._rewind(step)
                last = self._points[-1] if self._points else [0, 0.0, 1.0, 0.0, 0.0]
                seconds = sum(last[4:])  # points of earlier versions have none
                self._step, self.seconds = step, seconds + (step - last[0]) / last[2]
            case "progress":
                rate = max(event["steps_per_second"], 1e-9)
                self._step, self.seconds = step, self.seconds + (step - self._step) / rate
                self._points.append([step, event["loss"], rate, event["learning_rate"], self.seconds])
                if len(self._points) > POINTS:
                    del self._points[1:-1:2]
            case "validation":
                self._validations.append([step, event["psnr"] if math.isfinite(event["psnr"]) else None])
                if len(self._validations) > POINTS:
                    del self._validations[1:-1:2]
                self._keep_sample(step, event["pictures"])
                self.write()
        if time.monotonic() - self._written >= WRITE_SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is known so far."""
        self._written = time.monotonic()
        value = {"points": self._points, "validations": self._validations, "samples": self._samples}
        with contextlib.suppress(OSError, IdcError):
            self._storage.write_json(CURVES, value)

    def _rewind(self, step: int) -> None:
        """What was recorded of later steps is recorded again."""
        self._points = [point for point in self._points if point[0] <= step]
        self._validations = [point for point in self._validations if (point[0] or 0) <= step]
        for later in [each for each in self._samples if each > step]:
            self._forget(later)

    def _keep_sample(self, step: int, pictures: Sequence[bytes]) -> None:
        if not pictures:
            return
        with contextlib.suppress(OSError, IdcError):
            self._storage.write(sample_name(step), _strip(pictures))
            self._samples.append(step)
        if len(self._samples) > SAMPLES:
            for dropped in self._samples[1:-1:2]:
                self._forget(dropped)

    def _forget(self, step: int) -> None:
        self._samples.remove(step)
        with contextlib.suppress(OSError, IdcError):
            self._storage.delete(sample_name(step))


def _strip(pictures: Sequence[bytes]) -> bytes:
    """The middles of PNG pictures side by side, as a PNG."""
    strip = Image.new("RGB", (CROP * len(pictures), CROP))
    for index, data in enumerate(pictures):
        picture = Image.open(io.BytesIO(data))
        left, top = (picture.width - CROP) // 2, (picture.height - CROP) // 2
        strip.paste(picture.crop((left, top, left + CROP, top + CROP)), (index * CROP, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()
