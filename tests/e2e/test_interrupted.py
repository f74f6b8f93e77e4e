"""Interrupted and locked jobs: exit code, time to exit, and continuation."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tests.e2e.conftest import Told, end, parts, rows, run, start, wait_for

pytestmark = pytest.mark.timeout(600)


def test_a_second_command_on_the_same_output_is_refused_naming_the_first(
    photos: Path, tmp_path: Path, joined: dict[str, object]
) -> None:
    """Exit 4. Also SIGINT: exit 130 within 2 seconds, and some on a busy machine, and it says how to continue."""
    output = tmp_path / "out"
    settings = joined | {"iterations": 100}
    first = start(photos, output, settings)
    wait_for(lambda: bool(parts(output)), first)
    second = run(photos, output, settings)
    assert second.returncode == 4, second.stderr
    assert f"process {first.pid}" in second.stderr
    code, told, seconds = end(first, signal.SIGINT)
    assert code == 130, told
    assert "stopped by SIGINT" in told
    assert "the same command continues" in told
    assert "Traceback" not in told
    assert seconds < 3


def handles_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("delay", [0.0, 2.0, 5.0])
def test_terminated_before_the_work_begins(photos: Path, tmp_path: Path, delay: float) -> None:
    """While Python imports, while images are listed, while Ray starts."""
    process = start(photos, tmp_path / "out")
    wait_for(lambda: handles_sigterm(process.pid), process)
    time.sleep(delay)
    code, told, seconds = end(process, signal.SIGTERM)
    assert code == 130, told
    assert "Traceback" not in told
    assert seconds < 3


def test_terminated_at_work_and_continued(
    photos: Path, undisturbed: pa.Table, tmp_path: Path, run_here: Callable[..., Told]
) -> None:
    """Same rows, no image under suspicion, one tracked run."""
    output, tracked = tmp_path / "out", {"mlflow.enabled": True}
    process = start(photos, output, tracked)
    wait_for(lambda: bool(parts(output)), process)
    code, told, seconds = end(process, signal.SIGTERM)
    assert code == 130, told
    assert seconds < 3
    assert not list((output / "inflight").rglob("*.json")), "an interrupted image is not suspect"
    assert [status for _, status in tracked_runs(output)] == ["KILLED"]
    before = tracked_runs(output)
    assert run_here(photos, output, tracked).returncode == 0
    assert rows(output).equals(undisturbed)
    assert tracked_runs(output) == [(before[0][0], "FINISHED")]


def tracked_runs(output: Path) -> list[tuple[str, str]]:
    """Id and status."""
    with contextlib.closing(sqlite3.connect(output / "mlflow.db")) as database:
        return database.execute("SELECT run_uuid, status FROM runs").fetchall()
