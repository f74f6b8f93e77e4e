"""Whatever is killed, and whenever: the same command again ends with the rows of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from idc_ray.images import image_id
from idc_ray.store.filesystem import resolve
from idc_ray.store.quarantine import list_quarantined
from tests.e2e.conftest import Told, end, parts, rows, run, start, wait_for

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def worker_pids(output: Path) -> list[int]:
    found = []
    for path in (output / "inflight").glob("*/*.json"):
        try:
            found.append(json.loads(path.read_text())["pid"])
        except (FileNotFoundError, ValueError):  # cleared between the listing and the reading
            continue
    return found


def test_driver_killed_at_random_moments(
    photos: Path, undisturbed: pa.Table, tmp_path: Path, run_here: Callable[..., Told], joined: dict[str, object]
) -> None:
    """kill -9 at the start, then in the work; and no worker continues for long without its driver.

    First on a cluster that outlives the driver, then on one of its own.
    """
    output = tmp_path / "out"
    moment = random.Random(0)
    for at_work, settings in ((False, joined), (True, {})):
        process = start(photos, output, settings)
        before = len(parts(output))
        if at_work:
            wait_for(lambda: len(parts(output)) > before, process)  # noqa: B023
        time.sleep(moment.uniform(0, 1 if at_work else 5))
        workers = worker_pids(output)
        end(process, signal.SIGKILL)
        limit = time.monotonic() + 30
        while any(alive(pid) for pid in workers):
            assert time.monotonic() < limit, "a worker outlives its driver"
            time.sleep(0.1)
    last = run_here(photos, output)
    assert last.returncode == 0, last.stderr
    assert rows(output).equals(undisturbed)
    assert not list((output / "quarantine").rglob("*.json"))
    assert not parts(output)


def test_worker_killed_in_mid_image(
    photos: Path, undisturbed: pa.Table, tmp_path: Path, joined: dict[str, object]
) -> None:
    """The job continues, and no image is quarantined."""
    output = tmp_path / "out"
    process = start(photos, output, joined)
    wait_for(lambda: bool(worker_pids(output)), process)
    for pid in worker_pids(output):
        os.kill(pid, signal.SIGKILL)
    _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert rows(output).equals(undisturbed)
    assert not list((output / "quarantine").rglob("*.json"))


def test_images_that_kill_their_processes_are_set_aside_alone(
    photos: Path, undisturbed: pa.Table, tmp_path: Path, run_here: Callable[..., Told]
) -> None:
    """Catches a job that is restarted over and over, in condensing or in reading, and neighbours that pay for it.

    Also an image that fits into memory only by itself and frugally: it is done, with the same bytes; and one that
    finds no memory at all under a limit of ours, which torch meets in the middle of its work.
    """
    output = tmp_path / "out"
    done = run(photos, output, {"store.attempts": 2}, sabotage="kill:03.png read:05.png memory:04.png limit:07.png")
    assert done.returncode == 0, done.stderr
    entries = list_quarantined(resolve(str(output)), undisturbed["config_digest"][0].as_py())
    assert sorted((e.source, e.code, e.attempts) for e in entries) == [
        ("03.png", "killed_worker", 2),
        ("05.png", "killed_reader", 2),
        ("07.png", "out_of_memory", 1),
    ]
    reasons = {entry.source: entry.reason for entry in entries}
    assert "died 2 times" in reasons["03.png"] and "died 2 times" in reasons["05.png"]
    assert "not enough memory" in reasons["07.png"]
    guilty = pa.array([image_id(name) for name in ("03.png", "05.png", "07.png")])
    assert rows(output).equals(undisturbed.filter(pc.invert(pc.is_in(undisturbed["image_id"], guilty))))
    again = run_here(photos, output, {"retry_quarantined": True})
    assert again.returncode == 0, again.stderr
    assert rows(output).equals(undisturbed)


def test_full_disk_stops_clearly_and_loses_nothing(
    photos: Path, undisturbed: pa.Table, tmp_path: Path, run_here: Callable[..., Told]
) -> None:
    output = tmp_path / "out"
    full = run(photos, output, sabotage="disk:3")
    assert full.returncode == 1, full.stderr
    assert "no space left" in full.stderr.lower()
    assert "Traceback" not in full.stderr
    assert len(parts(output)) == 3
    assert not list((output / "quarantine").rglob("*.json")), "a full disk is no image's fault"
    again = run_here(photos, output)
    assert again.returncode == 0, again.stderr
    assert rows(output).equals(undisturbed)
