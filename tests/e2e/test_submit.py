"""`ray job submit` from a clone, to a head that runs: stopped, submitted again, refused."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from idc_ray.store.filesystem import resolve
from idc_ray.store.status import read_status
from tests.e2e.conftest import IMAGES, command, parts, rows
from tests.e2e.head import Head, running_head, wait
from tests.e2e.test_interrupted import tracked_runs

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(cpus=2) as head:
        yield head


def entrypoint(source: Path, output: Path | str, **settings: object) -> list[str]:
    """The job's command as it stands in the README: `jobs/condense.py` is the copy that was taken along."""
    arguments = command(source, Path("/"), settings)[2:]
    arguments[arguments.index("--output") + 1] = str(output)
    return [sys.executable, "jobs/condense.py", *arguments]


def test_stopped_submitted_again_and_refused(head: Head, photos: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    """One head, one story: it takes 8 s to start.

    Catches code that is not taken along, results in the job's temporary folder, a stop that takes as long as Ray's
    own 3 s or ends in a kill, a run that stays RUNNING in MLflow, a lock or suspects that are left, bars in the log,
    metrics that never reach the node, a status that needs Ray or disturbs the job.
    """
    output = tmp_path / "out"
    job = entrypoint(photos, output, **{"mlflow.enabled": True})
    head.submit("first", job)
    head.submit("relative", entrypoint(photos, "out"))
    wait(lambda: bool(parts(output)), 240, lambda: head.logs("first"))
    status = read_status(resolve(str(output)))
    assert (status.state, status.run.images) == ("running", IMAGES)
    assert status.lock.launch is not None
    begin = time.monotonic()
    head.stop("first")
    assert head.ended("first")["status"] == "STOPPED"
    assert time.monotonic() - begin < 5
    assert "terminated gracefully" in head.supervisor_log("first")
    assert "stopped by SIGTERM" in head.logs("first")
    status = read_status(resolve(str(output)))
    assert (status.state, status.lock.state, status.left) == ("stopped", "free", [])
    assert 0 < status.done < IMAGES
    runs = tracked_runs(output)
    assert [state for _, state in runs] == ["KILLED"]

    head.submit("again", job)
    refused = head.ended("relative")
    assert (refused["status"], refused["driver_exit_code"]) == ("FAILED", 2)
    assert "--output is 'out'" in head.logs("relative")
    assert "absolute path" in head.logs("relative")
    assert head.ended("again")["status"] == "SUCCEEDED", head.logs("again")
    assert rows(output).equals(undisturbed)
    assert tracked_runs(output) == [(runs[0][0], "FINISHED")]
    assert read_status(resolve(str(output))).state == "finished"
    log = head.logs("again")
    assert "\r" not in log
    assert len(log.splitlines()) < 150, log
    wait(lambda: "ray_idc_images_done_total" in head.metrics(), 20, head.metrics)
    assert "ray_idc_image_seconds_count" in head.metrics()
