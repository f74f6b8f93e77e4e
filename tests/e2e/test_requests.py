"""What is refused, with which exit code; what is interrupted, and how it goes on."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pyarrow as pa
import pytest

from tests.e2e.conftest import end, parts, rows, run, start, wait_for, write_pictures

pytestmark = pytest.mark.timeout(600)


def test_a_second_command_on_the_same_output_is_refused_naming_the_first(photos: Path, tmp_path: Path) -> None:
    """Exit 4. Also SIGINT: exit 130 within seconds, and it says how to go on."""
    output = tmp_path / "out"
    first = start(photos, output, {"iterations": 100})
    wait_for(lambda: bool(parts(output)), first)
    second = run(photos, output, {"iterations": 100})
    assert second.returncode == 4, second.stderr
    assert f"process {first.pid}" in second.stderr
    code, told, seconds = end(first, signal.SIGINT)
    assert code == 130, told
    assert "stopped by SIGINT" in told
    assert "the same command continues" in told
    assert "Traceback" not in told
    assert seconds < 10


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
    assert seconds < 10


def test_terminated_at_work_and_continued(photos: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(photos, output)
    wait_for(lambda: bool(parts(output)), process)
    code, told, seconds = end(process, signal.SIGTERM)
    assert code == 130, told
    assert seconds < 10
    assert not list((output / "inflight").rglob("*.json")), "an interrupted image is not suspect"
    assert run(photos, output).returncode == 0
    assert rows(output).equals(undisturbed)


def test_wrong_requests_are_told_at_once(photos: Path, tmp_path: Path) -> None:
    """Exit 2, naming the value and the fix; nothing is started or written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    output = tmp_path / "out"
    cases: list[tuple[Path, Path, dict[str, object], str]] = [
        (photos, output, {"rlff.num_frequencys": 3}, "did you mean 'rlff.num_frequencies'"),
        (photos, output, {"tile_size": 17.5}, "tile_size"),
        (tmp_path / "empty", output, {}, "no images"),
        (tmp_path / "nowhere", output, {}, "nowhere"),
        (photos, tmp_path / "file", {}, "choose another --output"),
        (photos, output, {"scale": 3}, "no teacher is bundled for scale 3"),
        (photos, output, {"teacher": str(tmp_path / "file")}, "no checkpoint"),
        (photos, output, {"rlff.feature_layer": "body.99"}, "body.99"),
        (photos, output, {"method": "idc", "labels": "real"}, "labels is real"),
    ]
    for source, where, settings, message in cases:
        begin = time.monotonic()
        done = run(source, where, settings)
        assert (done.returncode, message in done.stderr) == (2, True), (settings, done.stderr)
        assert "Traceback" not in done.stderr
        assert time.monotonic() - begin < 60
        assert not (output / "run.json").exists()


def test_another_run_in_the_same_output_needs_overwrite(tmp_path: Path) -> None:
    """The refusal names what differs; --overwrite takes away what is ours and nothing else."""
    source, output = write_pictures(tmp_path / "photos", 2), tmp_path / "out"
    quick = {"iterations": 1}
    assert run(source, output, quick).returncode == 0
    before = rows(output)
    (output / "mine.txt").write_text("keep me")
    other = run(source, output, {"iterations": 2})
    assert other.returncode == 2
    assert "iterations: 1 -> 2" in other.stderr
    assert "--overwrite" in other.stderr
    assert rows(output).equals(before)
    assert run(source, output, {"iterations": 2, "overwrite": True}).returncode == 0
    assert not rows(output).equals(before)
    assert (output / "mine.txt").read_text() == "keep me"


def test_a_changed_image_is_told_and_redone_on_request(tmp_path: Path) -> None:
    source, output = write_pictures(tmp_path / "photos", 3), tmp_path / "out"
    quick = {"iterations": 1}
    assert run(source, output, quick).returncode == 0
    before = rows(output)
    (source / "01.png").write_bytes((source / "00.png").read_bytes())
    refused = run(source, output, quick)
    assert refused.returncode == 2
    assert "'01.png'" in refused.stderr
    assert "--source.on-changed redo" in refused.stderr
    assert run(source, output, quick | {"source.on_changed": "redo"}).returncode == 0
    after = rows(output)
    changed = [
        a != b for a, b in zip(before["source_sha256"].to_pylist(), after["source_sha256"].to_pylist(), strict=True)
    ]
    assert [name for name, c in zip(after["source"].to_pylist(), changed, strict=True) if c] == ["01.png"] * sum(
        changed
    )
    assert sum(changed) > 0


def test_dry_run_starts_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    done = run(photos, tmp_path / "out", {"dry_run": True})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    assert "Started a local Ray" not in done.stderr
    for word in ("images", "tiles", "bytes", "time"):
        assert word in done.stdout, done.stdout
