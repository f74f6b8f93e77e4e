from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from idc_ray.pipeline import progress as module
from idc_ray.pipeline.progress import Heartbeat, Progress, loss_drop
from idc_ray.units import duration


def row(outcome: str = "done", start: float | None = 4.0, end: float | None = 1.0) -> dict[str, Any]:
    return {"image_id": "0" * 16, "outcome": outcome, "loss_start": start, "loss_end": end}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def without_terminal(total: int, done_before: int = 0) -> tuple[Progress, Clock, io.StringIO]:
    clock, stream = Clock(), io.StringIO()
    return Progress(total, done_before, stream, clock), clock, stream


def test_without_a_terminal_a_line_at_the_first_image_now_and_then_and_at_the_end() -> None:
    """Catches a bar redrawn into a job's log, and a log that stays silent for hours."""
    progress, clock, stream = without_terminal(100)
    for _ in range(100):
        clock.now += 1.0
        progress.update(row())
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 99 // int(module.LOG_SECONDS) + 1
    assert lines[0] == "1 of 100 images, 0 quarantined, 1 images/s, 1 min 39 s left, matching loss -75 %"
    assert lines[1].startswith("16 of 100 images")
    assert lines[-1] == "100 of 100 images, 0 quarantined, 1 images/s, matching loss -75 %"


def test_what_is_in_hand_is_shown_from_the_start_and_while_it_lasts() -> None:
    """Catches an hour of silence over one large image."""
    progress, clock, stream = without_terminal(2)
    progress.begin("a.png")
    progress.tick()
    progress.step("tile 3 of 40")
    for _ in range(int(module.LOG_SECONDS)):
        clock.now += 1.0
        progress.tick()
    progress.update(row(start=None, end=None))
    progress.begin("b.png")
    clock.now += module.LOG_SECONDS
    progress.tick()
    lines = stream.getvalue().splitlines()
    assert lines[:2] == [
        "0 of 2 images, 0 quarantined, now a.png",
        "0 of 2 images, 0 quarantined, now a.png, tile 3 of 40",
    ]
    assert lines[2].startswith("1 of 2 images")
    assert lines[2].endswith("now b.png")
    progress.update(row(start=None, end=None))
    assert "now" not in progress.line()


def test_the_work_of_workers_is_shown_while_an_image_takes_minutes() -> None:
    """Catches minutes without news of where a large image stands, and an output that is read for every line."""
    asked: list[float] = []
    clock, stream = Clock(), io.StringIO()

    def work() -> str:
        asked.append(clock.now)
        return f"a.png for {clock.now - 100:.0f} s"

    progress = Progress(9, 0, stream, clock, work=work)
    for second in range(1, 50):
        clock.now += 1
        progress.tick()
        if second in (5, 40):
            progress.update(row())
    assert asked == [120, 135], "15 s after the last row, and 15 s later"
    assert stream.getvalue().splitlines() == [
        "1 of 9 images, 0 quarantined, 0.2 images/s, 40 s left, matching loss -75 %",
        "1 of 9 images, 0 quarantined, 0.05 images/s, 2 min 40 s left, matching loss -75 %, now a.png for 20 s",
        "1 of 9 images, 0 quarantined, 0.0286 images/s, 4 min 40 s left, matching loss -75 %, now a.png for 35 s",
    ]
    progress.update(row())
    assert "now" not in progress.line()


def test_images_of_earlier_launches_are_progress_but_not_speed() -> None:
    """Catches a resumed job that claims a thousand images a second, and a time left of nothing."""
    progress, clock, _ = without_terminal(total=100, done_before=90)
    clock.now += 10
    progress.update(row())
    assert progress.line() == "91 of 100 images, 0 quarantined, 0.1 images/s, 1 min 30 s left, matching loss -75 %"


def test_failed_images_count_as_handled_but_not_as_done() -> None:
    progress, clock, _ = without_terminal(4)
    clock.now += 2
    progress.update(row("quarantined", None, None))
    progress.update(row("skipped", None, None))
    progress.update(row(start=1.0, end=0.9))
    assert (progress.done, progress.failed) == (2, 1)
    assert progress.metrics() == pytest.approx(
        {"images_done": 2.0, "images_failed": 1.0, "images_per_second": 1.5, "mean_loss_drop": 0.1}
    )
    assert "1 s left" in progress.line()  # one image, at 1.5 a second


def test_without_optimisation_there_is_no_loss_drop() -> None:
    """Catches a drop of 0 % or NaN for selection methods and for an image that got no tile."""
    progress, clock, _ = without_terminal(2)
    clock.now += 1
    progress.update(row(start=None, end=None))
    assert "mean_loss_drop" not in progress.metrics()
    assert "loss" not in progress.line()


def test_on_a_terminal_a_bar_shows_the_same() -> None:
    terminal = Terminal()
    progress = Progress(4, 1, terminal)
    progress.update(row("quarantined", None, None))
    for _ in range(2):
        progress.update(row())
    progress.close()
    last = terminal.getvalue().split("\r")[-1]
    assert "4/4" in last
    assert "1 quarantined, matching loss -75 %" in last
    assert "of 4 images" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("status", "drop"),
    [
        (row(start=2.0, end=1.0), 0.5),
        (row(start=1.0, end=1.0), 0.0),
        (row(start=0.0, end=0.0), None),
        (row("quarantined"), None),
    ],
)
def test_loss_drop(status: dict[str, Any], drop: float | None) -> None:
    assert loss_drop(status) == drop


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (187, "3 min 07 s"), (3600, "1 h 00 min"), (7199.9, "2 h 00 min")],
)
def test_durations_carry_over(seconds: float, text: str) -> None:
    """Catches `0 min 60 s` and `1 h 60 min`."""
    assert duration(seconds) == text


def test_a_silent_stage_has_a_heartbeat(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a job that says nothing for minutes; a report that fails, as while a job ends, ends nothing."""
    caplog.set_level("INFO")
    count = [0]

    def now() -> str:
        count[0] += 1
        if count[0] == 1:
            raise RuntimeError("not yet")
        return f"{count[0]} written"

    with Heartbeat("listing the images", every=0.02):
        wait_for(lambda: "listing the images, for 0 s" in caplog.text)
    with Heartbeat(now, every=0.02):
        wait_for(lambda: "3 written" in caplog.text)
    ended = threading.active_count()
    caplog.clear()
    time.sleep(0.1)
    assert caplog.text == ""
    assert threading.active_count() <= ended
    with Heartbeat("a stage that ends at once"):
        pass
    assert caplog.text == ""


def test_a_library_shows_a_bar_to_people_only_and_else_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Catches lines in the output of a program that only calls a function, and silence that is not silent."""
    with caplog.at_level("INFO"):
        stream, terminal, silent = io.StringIO(), Terminal(), Terminal()
        for progress in (Progress(1, 0, stream, show="log"), Progress(1, 0, terminal, show="log")):
            progress.update(row())
            progress.close()
        assert stream.getvalue() == "" and terminal.getvalue() != ""
        assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["1 of 1 images"] * 2
        caplog.clear()
        for hidden in (silent, stream):
            progress = Progress(1, 0, hidden, show="nothing")
            progress.update(row())
            progress.close()
        assert (silent.getvalue(), stream.getvalue(), caplog.records) == ("", "", [])


def test_silence_counts_over_stages_and_other_lines_end_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches short stages one after another that are silent together, and a heartbeat between lines of a bar's."""
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "TICK_SECONDS", 0.01)
    module.mark_shown()
    deadline = time.monotonic() + 5
    while not caplog.text and time.monotonic() < deadline:
        with Heartbeat("a short stage", every=0.3):
            time.sleep(0.05)
    assert caplog.text.count("a short stage, for 0 s") == 1
    caplog.clear()
    progress, _, _ = without_terminal(100)
    with Heartbeat("another", every=0.3):
        for _ in range(20):
            progress.update(row())
            progress.close()
            time.sleep(0.02)
    assert caplog.text == ""
