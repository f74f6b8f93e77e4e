"""Progress of a training: a bar on a terminal, otherwise periodic lines."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

from idc_ray.pipeline.progress import LOG_SECONDS, Show, mark_shown
from idc_ray.units import duration

log = logging.getLogger(__name__)


class TrainProgress:
    """Shows a training's events.

    Args:
        iterations: total number of steps.
        stream: where to write; a bar is shown if it is a terminal.
        show: how to show progress without a terminal, or ``nothing``.
    """

    def __init__(self, iterations: int, stream: TextIO | None = None, show: Show = "lines") -> None:
        self.iterations = iterations
        self._stream = sys.stderr if stream is None else stream
        self._way = show
        self._begun = False
        self._logged_at, self._logged = -math.inf, 0
        self._step, self._rate, self._loss, self._psnr = 0, math.nan, math.nan, math.nan
        self._bar = (
            tqdm(total=iterations, unit="step", file=self._stream, dynamic_ncols=True, delay=1e-6)
            if self._stream.isatty() and show != "nothing"
            else None
        )

    def update(self, event: Mapping[str, Any]) -> None:
        """Show an event."""
        self._begun = True
        self._step = event["step"]
        match event["kind"]:
            case "resumed":
                self._say(f"continuing after step {self._step}")
                if self._bar is not None:
                    self._bar.initial = self._step
            case "validation":
                self._psnr = event["psnr"]
                self._say(f"step {self._step}: validation {self._psnr:.2f} dB")
            case "progress":
                self._rate, self._loss = event["steps_per_second"], event["loss"]
        self._show()

    def tick(self) -> None:
        """Refresh while no event arrives, as during validation or slow steps; before the first one, do nothing."""
        if not self._begun:
            return
        if self._bar is not None:
            self._bar.refresh()
        elif time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._log()

    def line(self) -> str:
        """The progress: ``1200 of 10000 steps, loss 0.00812, 3.1 steps/s, 47 min 12 s left, validation 33.81 dB``."""
        parts = [f"{self._step} of {self.iterations} steps"]
        if not math.isnan(self._loss):
            parts += [f"loss {self._loss:.5f}", f"{self._rate:.3g} steps/s"]
            if self._step < self.iterations and self._rate > 0:
                parts.append(f"{duration((self.iterations - self._step) / self._rate)} left")
        if not math.isnan(self._psnr):
            parts.append(f"validation {self._psnr:.2f} dB")
        return ", ".join(parts)

    def close(self) -> None:
        """Show the final state and end the line on a terminal."""
        if self._bar is not None:
            self._bar.close()
        elif self._step and self._step != self._logged:
            self._log()

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        elif self._way == "lines":
            print(text, file=self._stream, flush=True)
        elif self._way == "log":
            log.info("%s", text)

    def _show(self) -> None:
        if self._bar is not None:
            known = [] if math.isnan(self._loss) else [f"loss {self._loss:.5f}"]
            known += [] if math.isnan(self._psnr) else [f"{self._psnr:.2f} dB"]
            self._bar.set_postfix_str(", ".join(known), False)
            self._bar.update(self._step - self._bar.n)
        elif time.monotonic() - self._logged_at >= LOG_SECONDS:
            self._log()

    def _log(self) -> None:
        self._logged_at, self._logged = time.monotonic(), self._step
        mark_shown()
        self._say(self.line())
