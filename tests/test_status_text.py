from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from idc_ray.cli import run_job
from idc_ray.commands.status import main
from idc_ray.status_text import format_status, work_in_progress
from idc_ray.store.filesystem import StorageFolder, resolve
from idc_ray.store.holder import holder_text
from idc_ray.store.inflight import Inflight, write_inflight
from idc_ray.store.lock import lock
from idc_ray.store.manifest import write_manifest
from idc_ray.store.quarantine import QuarantineEntry, quarantine_image
from idc_ray.store.run_record import RunRecord, begin_run, update_run
from idc_ray.store.status import read_status

DIGEST = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> StorageFolder:
    store = resolve(str(tmp_path / "out"))
    record = RunRecord({}, DIGEST, "t", "s3://b/photos", {}, 4, "2026-01-01T00:00:00+00:00", "GPUs", images=9)
    begin_run(store, record)
    return store


def test_a_running_job(store: StorageFolder) -> None:
    """Catches a screen that hides what went wrong: failures with their reasons, what was left, who has the lock."""
    for number in range(5):
        entry = QuarantineEntry(f"{number:016x}", f"{number}.png", "truncated", f"ends at {number}", "", 1, "l", "t")
        quarantine_image(store, DIGEST, entry)
    now = time.time()
    write_inflight(store, "20260101T000000-1", "w", Inflight(["a" * 16, "b" * 16], False, "n", 1, now - 70))
    write_inflight(store, "20250101T000000-1", "w", Inflight(["c" * 16], True, "n", 1, now - 5000))
    with lock(store, holder_text("20260101T000000-1")):
        text = format_status(read_status(store))
    lines = {name: rest.strip() for line in text.splitlines() for name, _, rest in [line.partition("  ")]}
    assert lines["state"] == "running"
    assert lines["images"] == "0 of 9 done, 5 quarantined, 4 left"
    assert f"{'a' * 16} and 1 more for 1 min 1" in text
    assert f"{'c' * 16}, alone, left by attempt 20250101T000000-1" in text
    assert "held by process" in lines["lock"]
    assert "5 truncated" in text
    assert text.count("ends at") == 3
    assert DIGEST in lines["run"]


def test_what_workers_do_is_short_and_begins_with_the_longest() -> None:
    """Catches a screen of a thousand workers, and images that are shown by id although their path is known."""
    workers = [
        Inflight([str(n), "x", "y"][: 1 + n % 2 * 2], False, "n", 1, 1000.0 - n, "d/four.png" if n == 4 else "")
        for n in range(5)
    ]
    lines = work_in_progress(workers, 1060.0)
    assert lines == ["d/four.png for 1 min 04 s", "3 and 2 more for 1 min 03 s", "2 for 1 min 02 s",
                     "2 more workers are busy"]  # fmt: skip
    assert work_in_progress(workers[:1], 900.0) == ["0 for 0 s"], "another machine's clock"
    assert work_in_progress([], 1000.0) == []


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run_job(main, arguments)
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_the_job_and_its_exit_codes(store: StorageFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, store.uri)
    assert (code, "stopped before its end" in out) == (0, True)
    code, out, _ = run(capsys, store.uri, "--json")
    assert (code, json.loads(out)["state"]) == (0, "stopped")
    code, _, err = run(capsys, str(tmp_path / "nowhere"))
    assert (code, "error: no run in" in err) == (2, True)
    code, _, err = run(capsys, store.uri, "--jsno")
    assert (code, "--jsno" in err) == (2, True)
    code, _, err = run(capsys)
    assert (code, "OUT" in err) == (2, True)
    (tmp_path / "out" / "run.json").write_text("{")
    code, _, err = run(capsys, store.uri)
    assert (code, "not valid JSON" in err) == (1, True)


def test_a_finished_run(store: StorageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    update_run(store, images=0)
    write_manifest(store, DIGEST, 24, {"wall": 3700.0}, 0)
    text = format_status(read_status(store))
    assert "state        finished" in text
    assert "0 images, 0 tiles, ratio 0" in text
    assert "1 h 02 min" in text
