from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from idc_ray import watch as module
from idc_ray.commands import main
from idc_ray.images import encode_png
from idc_ray.store.compaction import compact
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import holder_text
from idc_ray.store.inflight import Inflight, write_inflight
from idc_ray.store.lock import lock
from idc_ray.store.manifest import write_manifest
from idc_ray.store.parts import commit_part
from idc_ray.store.records import ImageRecord
from idc_ray.store.run_record import RunRecord, begin_run
from idc_ray.store.schema import TileRow
from idc_ray.watch import watch

DIGEST = "0123456789abcdef"
LAUNCH = "20260101T000000-1"


@pytest.fixture
def store(tmp_path: Path) -> StorageFolder:
    store = resolve(str(tmp_path / "out"))
    record = RunRecord({}, DIGEST, "t", "photos", {}, 1, "2026-01-01T00:00:00+00:00", "CPUs", images=2)
    begin_run(store, record)
    return store


def commit(store: StorageFolder, number: int, source: str, tiles: int = 1) -> None:
    name = f"{number:016x}"
    colour = np.zeros((48, 48, 3), np.uint8)
    colour[:, :, 0] = 200
    png = encode_png(colour)
    rows = [
        TileRow(name, source, 1, "a", index, 0, 0, png, png, 2, "idc", "teacher", 1.0, 0.5, 0.25, False, DIGEST)
        for index in range(tiles)
    ]
    record = ImageRecord(
        name, source, 1, 0, "ab" * 32, 96, 96, 4, tiles, False, 0.5, 0.25, [0.5], [0.25], {"read": 1.0}, "cpu"
    )
    commit_part(store, DIGEST, [(record, rows)])


def begin_image(store: StorageFolder, source: str) -> None:
    write_inflight(store, LAUNCH, "w", Inflight(["c" * 16], False, "n", 1, time.time() - 70, source))


def job(store: StorageFolder, *steps: Callable[[], object]) -> Callable[[float], None]:
    """A job in place of ``sleep``: it makes one step while the display waits, and lets go after the last."""

    def run() -> Iterator[None]:
        with lock(store, holder_text(LAUNCH)):
            yield
            for step in steps:
                step()
                yield
        while True:
            yield

    running = run()
    next(running)
    return lambda seconds: next(running)


def finish(store: StorageFolder) -> None:
    compact(store, DIGEST, 0, 1)
    write_manifest(store, DIGEST, 24, {"wall": 3.0})


def shown(store: StorageFolder, terminal: bool) -> tuple[str, str]:
    """What is shown until the job ends, and the last state."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100, color_system="truecolor" if terminal else None)
    return watch(store, console).state, text.getvalue()


def test_a_terminal_shows_rate_workers_and_the_latest_tiles(
    store: StorageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a display that forgets finished images as soon as they are in a shard, or that never ends."""
    steps: list[Callable[[], object]] = [
        lambda: begin_image(store, "d/c.png"),
        lambda: commit(store, 1, "d/first.png"),
        lambda: commit(store, 2, "second.png", tiles=0),
        lambda: finish(store),
    ]
    monkeypatch.setattr(module, "sleep", job(store, *steps))
    state, text = shown(store, terminal=True)
    assert state == "finished"
    assert "0 of 2 images, 0 quarantined" in text
    assert "d/c.png for 1 min 1" in text
    assert "images/s" in text
    assert "48;2;200;0;0m" in text, "the tile's colour"
    last = text.rpartition("2 of 2 images")[2]
    assert "first.png" in last
    assert "second.png" in last
    assert "0 tiles" in last
    assert "loss x 0.50" in last


def test_without_a_terminal_there_is_a_line_now_and_then(
    store: StorageFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches escape sequences in a log, and a log that grows with every reading."""
    steps = [lambda: begin_image(store, "d/c.png"), *[lambda: None] * 5, lambda: finish(store)]
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(module, "sleep", job(store, *steps))
    state, text = shown(store, terminal=False)
    assert state == "stopped", "there are images left"
    assert text.splitlines()[0] == "0 of 2 images, 0 quarantined"
    assert "0 of 2 images, 0 quarantined, now d/c.png for 1 min 1" in text
    assert "\x1b" not in text
    monkeypatch.setattr(module, "LINE_SECONDS", 60.0)
    monkeypatch.setattr(module, "sleep", job(store, *[lambda: None] * 5))
    assert len(shown(store, terminal=False)[1].splitlines()) == 1
    assert main(["status", store.uri, "--watch"]) == 0
    assert "state        stopped before its end" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [True, False])
def test_names_cannot_command_the_terminal(
    store: StorageFolder, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """Catches escape sequences and markup of rich in names of files."""
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)
    steps = [lambda: begin_image(store, "[red]\x1b]0;x\x07.png"), lambda: commit(store, 1, "[b]\x1b[2J")]
    monkeypatch.setattr(module, "sleep", job(store, *steps))
    _, text = shown(store, terminal)
    assert "[red]\\x1b]0;x\\x07.png" in text
    assert "\x1b]0" not in text
    assert "[b]\x1b[2J" not in text
    assert ("[b]\\x1b[2J" in text) == terminal


def test_ctrl_c_ends_the_display_only(
    store: StorageFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sleep", job(store, interrupt))
    assert main(["status", store.uri, "--watch"]) == 130
    assert capsys.readouterr().out.endswith("display ended; the job is not affected\n")
