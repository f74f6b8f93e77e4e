"""What is refused, with which exit code, and that nothing has happened then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from idc_ray.errors import BadRequest
from idc_ray.pipeline.cluster import join
from tests.e2e.conftest import Told, rows, run, write_pictures

pytestmark = [pytest.mark.timeout(600), pytest.mark.ray]


def test_dry_run_starts_and_writes_nothing(tmp_path: Path) -> None:
    """Nor are the default photographs copied."""
    done = run(None, tmp_path / "out", {"dry_run": True, "method": "random"})
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    assert "starting Ray" not in done.stderr
    told = {name: text for line in done.stdout.splitlines() for name, _, text in [line.partition(" ")]}
    assert told["images"].strip().startswith("4 in ")
    for name in ("tiles", "budget", "bytes", "time"):
        assert told[name].strip().startswith("about ")


def test_a_cluster_that_does_not_answer_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray by itself tries for minutes, and ends with a traceback."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(BadRequest, match="no Ray cluster answers at '127.0.0.1:1'"):
        join("127.0.0.1:1")


def test_invalid_requests_are_refused_at_once(photos: Path, tmp_path: Path, run_here: Callable[..., Told]) -> None:
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
        (photos, photos, {}, "the same folder"),
        (photos, output, {"scale": 3}, "no teacher is bundled for scale 3"),
        (photos, output, {"teacher": str(tmp_path / "file")}, "not a checkpoint"),
        (photos, output, {"rlff.feature_layer": "body.99"}, "body.99"),
        (photos, output, {"method": "idc", "labels": "real"}, "labels is real"),
    ]
    for source, where, settings, message in cases:
        begin = time.monotonic()
        done = run_here(source, where, settings)
        assert (done.returncode, message in done.stderr) == (2, True), (settings, done.stderr)
        assert "Traceback" not in done.stderr
        assert time.monotonic() - begin < 20
        assert not (output / "run.json").exists()


def test_another_run_in_the_same_output_needs_overwrite(tmp_path: Path, run_here: Callable[..., Told]) -> None:
    """The refusal names what differs; --overwrite removes the files of the run only."""
    source, output = write_pictures(tmp_path / "photos", 2), tmp_path / "out"
    quick = {"iterations": 1}
    assert run_here(source, output, quick).returncode == 0
    before = rows(output)
    (output / "mine.txt").write_text("keep me")
    other = run_here(source, output, {"iterations": 2})
    assert other.returncode == 2
    assert "iterations: 1 -> 2" in other.stderr
    assert "--overwrite" in other.stderr
    assert rows(output).equals(before)
    assert run_here(source, output, {"iterations": 2, "overwrite": True}).returncode == 0
    assert not rows(output).equals(before)
    assert (output / "mine.txt").read_text() == "keep me"


def test_a_changed_image_is_reported_and_redone_on_request(tmp_path: Path, run_here: Callable[..., Told]) -> None:
    source, output = write_pictures(tmp_path / "photos", 3), tmp_path / "out"
    quick = {"iterations": 1}
    assert run_here(source, output, quick).returncode == 0
    before = rows(output)
    (source / "01.png").write_bytes((source / "00.png").read_bytes())
    refused = run_here(source, output, quick)
    assert refused.returncode == 2
    assert "'01.png'" in refused.stderr
    assert "--source.on-changed redo" in refused.stderr
    redone = run_here(source, output, quick | {"source.on_changed": "redo"})
    assert redone.returncode == 0
    assert " 1 images to condense, 2 already done" in redone.stderr
    after = rows(output)
    hashes = (table["source_sha256"].to_pylist() for table in (before, after))
    assert {name for name, a, b in zip(after["source"].to_pylist(), *hashes, strict=True) if a != b} == {"01.png"}
