from __future__ import annotations

import io
import time
from typing import Any

import pytest

from idc_ray.training import progress as module
from idc_ray.training.progress import LOG_SECONDS, TrainProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def progress(step: int, loss: float = 0.00812, rate: float = 3.125) -> dict[str, Any]:
    return {"kind": "progress", "step": step, "loss": loss, "steps_per_second": rate}


def validation(step: int, psnr: float = 33.812) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "psnr": psnr}


def test_a_line_has_all_known_values_only() -> None:
    """Catches nan in a log, and a wrong time left, or one after the last step."""
    shown = TrainProgress(10_000, io.StringIO())
    assert shown.line() == "0 of 10000 steps"
    shown.update(progress(1200))
    assert shown.line() == "1200 of 10000 steps, loss 0.00812, 3.12 steps/s, 46 min 56 s left"
    shown.update(validation(2000))
    assert shown.line() == ("2000 of 10000 steps, loss 0.00812, 3.12 steps/s, 42 min 40 s left, validation 33.81 dB")
    shown.update(progress(10_000, rate=250.0))
    assert shown.line() == "10000 of 10000 steps, loss 0.00812, 250 steps/s, validation 33.81 dB"


def test_a_training_that_stands_still_has_no_time_left() -> None:
    """Catches a division by 0."""
    shown = TrainProgress(10, io.StringIO())
    shown.update(progress(1, rate=0.0))
    assert shown.line() == "1 of 10 steps, loss 0.00812, 0 steps/s"


def test_without_a_terminal_a_line_now_and_then_and_at_the_end(clock: Clock) -> None:
    """Catches a bar redrawn into a job's log, and a last state that is not shown."""
    stream = io.StringIO()
    shown = TrainProgress(100, stream)
    for step in range(1, 101):
        clock.now += 1.0
        shown.update(progress(step))
    shown.close()
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["1", "16", "31", "46", "61", "76", "91", "100"]
    assert LOG_SECONDS == 15
    assert "\r" not in stream.getvalue()


def test_without_events_there_are_lines_too(clock: Clock) -> None:
    """Catches minutes of silence while a slow step or a validation continues."""
    stream = io.StringIO()
    shown = TrainProgress(100, stream)
    shown.update(progress(20))
    for _ in range(2 * int(LOG_SECONDS)):
        clock.now += 1.0
        shown.tick()
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["20", "20", "20"]


def test_validation_and_continuing_are_reported_at_once(clock: Clock) -> None:
    stream = io.StringIO()
    shown = TrainProgress(100, stream)
    shown.update({"kind": "resumed", "step": 40})
    shown.update(validation(50))
    shown.close()
    assert stream.getvalue().splitlines() == [
        "continuing after step 40",
        "40 of 100 steps",
        "step 50: validation 33.81 dB",
        "50 of 100 steps, validation 33.81 dB",
    ]


def test_a_training_that_never_began_prints_nothing() -> None:
    """Catches "0 of 100 steps" beneath the error that ended it."""
    stream = io.StringIO()
    TrainProgress(100, stream).close()
    assert stream.getvalue() == ""


def test_on_a_terminal_one_bar_and_whole_lines_above_it() -> None:
    """Catches a bar that restarts at 0 when continued, counts steps twice, or is torn by the validation's line."""
    stream = Terminal()
    shown = TrainProgress(100, stream)
    shown.update({"kind": "resumed", "step": 40})
    time.sleep(0.12)  # the bar is drawn ten times a second at most
    for step in (60, 80):
        shown.update(progress(step))
    shown.update(validation(80))
    shown.update(progress(100, loss=0.5))
    shown.close()
    text = stream.getvalue()
    assert "continuing after step 40\n" in text
    assert "step 80: validation 33.81 dB\n" in text
    last = text.rstrip("\n").split("\r")[-1]
    assert "100/100" in last and "100%" in last
    assert "loss 0.50000, 33.81 dB" in last
    assert text.endswith("\n")


def test_a_terminals_bar_shows_no_number_before_there_is_one() -> None:
    """Catches a bar that says "loss nan" for as long as the first steps take."""
    stream = Terminal()
    shown = TrainProgress(100, stream)
    shown.update({"kind": "resumed", "step": 40})
    shown.update(validation(40))
    shown.close()
    assert "nan" not in stream.getvalue()


def test_the_last_step_is_reported_once() -> None:
    """Catches a log that ends with the same line twice, and one that lacks the end."""
    stream = io.StringIO()
    progress = TrainProgress(20, stream)
    progress.update({"kind": "progress", "step": 10, "loss": 0.5, "steps_per_second": 2.0})
    progress.close()
    assert stream.getvalue().count("10 of 20 steps") == 1
    progress.update({"kind": "progress", "step": 20, "loss": 0.5, "steps_per_second": 2.0})
    progress.close()
    assert stream.getvalue().count("20 of 20 steps") == 1


def test_a_library_shows_a_bar_to_people_only_and_else_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Catches lines in the output of a program that only calls a function, and silence that is not silent."""
    event = {"kind": "progress", "step": 20, "loss": 0.5, "steps_per_second": 2.0}
    with caplog.at_level("INFO"):
        stream, terminal, silent = io.StringIO(), Terminal(), Terminal()
        for progress in (TrainProgress(20, stream, "log"), TrainProgress(20, terminal, "log")):
            progress.update({"kind": "resumed", "step": 10})
            progress.update(event)
            progress.close()
        assert stream.getvalue() == "" and terminal.getvalue() != ""
        told = [record.getMessage().partition(",")[0] for record in caplog.records]
        assert told == ["continuing after step 10", "10 of 20 steps", "20 of 20 steps"]
        caplog.clear()
        for hidden in (silent, stream):
            progress = TrainProgress(20, hidden, "nothing")
            progress.update(event)
            progress.close()
        assert (silent.getvalue(), stream.getvalue(), caplog.records) == ("", "", [])
