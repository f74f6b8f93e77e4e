"""Progress of a job: a bar in a terminal, otherwise lines."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from idc_ray.units import duration

#: Seconds between two lines of a log: a bar redrawn there would flood it, and a silent job looks like one that hangs.
LOG_SECONDS = 15.0
log = logging.getLogger(__name__)

Show = Literal["lines", "log", "nothing"]
"""Where progress is shown. On a terminal, a bar; elsewhere, now and then, a line on the stream, or in the log."""

WAITING = "waiting for the first images"
TICK_SECONDS = 1.0  # a bar whose clock stands still looks like a job that hangs


class _LastShown:
    """Time of the last line of progress of this process."""

    at = time.monotonic()  # initially the time of the import, near the start of the process


def seconds_silent() -> float:
    """Time since the last line of progress of this process."""
    return time.monotonic() - _LastShown.at


def mark_shown() -> None:
    """Record that a line of progress was shown."""
    _LastShown.at = time.monotonic()


class Heartbeat:
    """Logs periodically what a job is doing, for stages without progress lines.

    ``with Heartbeat("listing the images"):`` logs ``listing the images, for 30 s`` whenever no line of progress was
    shown for :data:`LOG_SECONDS`, also before the stage began.

    Args:
        now: description of the stage, or a function that returns it.
        every: seconds of silence before a line.
    """

    def __init__(self, now: str | Callable[[], str], every: float = LOG_SECONDS) -> None:
        self._now, self._every = now, every
        self._begin = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Log no more, before the stage ends."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(min(self._every, TICK_SECONDS)):
            if seconds_silent() < self._every:
                continue
            mark_shown()
            with contextlib.suppress(Exception):  # a report must not be able to fail
                if callable(self._now):
                    log.info("%s", self._now())
                else:
                    log.info("%s, for %s", self._now, duration(time.monotonic() - self._begin))


class Progress:
    """Counts and shows status rows. Wait for rows, which may take minutes, inside :meth:`ticking`.

    Args:
        total: number of images of the whole run.
        done_before: number of images that earlier attempts finished; they do not count for the rate.
        stream: output stream: a bar if it is a terminal, else lines.
        clock: function that returns seconds.
        show: where progress is shown without a terminal.
        work: returns what the workers do; called from another thread if no row has arrived for a while.
        failure: word for images without a result.

    Attributes:
        done: number of finished images, with those of earlier attempts.
        failed: number of images without a result in this attempt.
    """

    def __init__(
        self,
        total: int,
        done_before: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        show: Show = "lines",
        work: Callable[[], str] = str,
        failure: str = "quarantined",
    ) -> None:
        self.total, self.done, self.failed = total, done_before, 0
        self._way, self._failure = show, failure
        self._stream = sys.stderr if stream is None else stream
        self._clock, self._started = clock, clock()
        self._shown_at = -math.inf
        self._handled = 0  # by this launch
        self._drops = 0.0
        self._dropped = 0
        self._lock = threading.Lock()  # of the numbers and the stream, which the ticking thread uses too
        self._now = self._step = ""
        self._ask, self._work, self._asked_at = work, "", self._started
        self._bar = self._make_bar() if self._stream.isatty() and show != "nothing" else None

    def begin(self, now: str) -> None:
        """Set the current item, for jobs that process one item after another."""
        self._now, self._step = now, ""

    def step(self, step: str) -> None:
        """Set the current part of the item, such as ``tile 3 of 40``."""
        self._step = step

    def update(self, status: Mapping[str, Any]) -> None:
        """Count one status row."""
        with self._lock:
            if status["outcome"] == "quarantined":
                self.failed += 1
            else:
                self.done += 1
            self._handled += 1
            self._work, self._asked_at = "", self._clock()
            drop = loss_drop(status)
            if drop is not None:
                self._drops += drop
                self._dropped += 1
            self._show()

    def tick(self) -> None:
        """Refresh the bar, or show a line if there was none for a while.

        Before the first row, ``waiting`` shows other lines.
        """
        self._ask_for_work()
        with self._lock:
            if self._bar is not None:
                if self._in_hand():
                    self._bar.set_postfix_str(self._in_hand(), False)
                self._bar.refresh()
            elif (self._handled or self._now) and self._clock() - self._shown_at >= LOG_SECONDS:
                self._show_line()

    @contextlib.contextmanager
    def ticking(self) -> Iterator[None]:
        """Call :meth:`tick` every second, show log messages above the bar, and close at the end."""
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(TICK_SECONDS):
                self.tick()

        thread = threading.Thread(target=run, name="progress", daemon=True)
        with logging_redirect_tqdm() if self._bar is not None else contextlib.nullcontext():
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()
                self.close()

    def metrics(self) -> dict[str, float]:
        """Metrics over the number of finished images."""
        values = {
            "images_done": float(self.done),
            "images_failed": float(self.failed),
            "images_per_second": self._speed(),
        }
        mean = self._mean_drop()
        return values if mean is None else {**values, "mean_loss_drop": mean}

    def close(self) -> None:
        """Show the last state."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._show_line()

    def line(self) -> str:
        """Such as ``12 of 200 images, 1 quarantined, 0.84 images/s, 3 min 43 s left, matching loss -62 %``."""
        parts = [f"{self.done} of {self.total} images", f"{self.failed} {self._failure}"]
        if self._handled:
            parts.append(f"{self._speed():.3g} images/s")
            left = self.total - self.done - self.failed
            if left > 0:
                parts.append(f"{duration(left / self._speed())} left")
        mean = self._mean_drop()
        if mean is not None:
            parts.append(f"matching loss {-100 * mean:+.0f} %")
        if self._in_hand() and self.done + self.failed < self.total:
            parts.append(f"now {self._in_hand()}")
        return ", ".join(parts)

    def _in_hand(self) -> str:
        return ", ".join(part for part in (self._now, self._step, self._work) if part)

    def _ask_for_work(self) -> None:
        """Ask what the workers do; outside the lock, as object stores may be slow."""
        asked_at = self._clock()
        if asked_at - self._asked_at < LOG_SECONDS:
            return
        self._asked_at = asked_at
        work = self._ask()
        with self._lock:
            if self._asked_at == asked_at:  # no row has arrived meanwhile
                self._work = work

    def _make_bar(self) -> Any:
        return tqdm(
            total=self.total,
            initial=self.done,
            unit="image",
            file=self._stream,
            dynamic_ncols=True,
            smoothing=0.05,  # images finish in batches: an average over few would jump
            postfix=WAITING,
        )

    def _show(self) -> None:
        if self._bar is not None:
            mean = self._mean_drop()
            self._bar.set_postfix_str(
                f"{self.failed} {self._failure}" + ("" if mean is None else f", matching loss {-100 * mean:+.0f} %"),
                False,
            )
            self._bar.update(1)
        elif self._clock() - self._shown_at >= LOG_SECONDS:
            self._show_line()

    def _show_line(self) -> None:
        self._shown_at = self._clock()
        mark_shown()
        if self._way == "lines":
            print(self.line(), file=self._stream, flush=True)
        elif self._way == "log":
            log.info("%s", self.line())

    def _speed(self) -> float:
        return self._handled / max(self._clock() - self._started, 1e-3)

    def _mean_drop(self) -> float | None:
        return self._drops / self._dropped if self._dropped else None


def loss_drop(status: Mapping[str, Any]) -> float | None:
    """Relative decrease of an image's held-out loss; None if nothing was matched."""
    start, end = status.get("loss_start"), status.get("loss_end")
    if status["outcome"] != "done" or not start or end is None:
        return None
    return 1.0 - float(end) / float(start)
