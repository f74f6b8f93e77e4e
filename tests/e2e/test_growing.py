"""A cluster that starts without a single worker and grows on demand: Ray's own autoscaler, with machines that are
processes of this one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.e2e.conftest import environment, rows, start, wait_for
from tests.e2e.test_losing import at_work

pytestmark = pytest.mark.timeout(600)

HEAD = "f" * 51 + "00000"  # the id that Ray's stand-in for a cloud expects of the head
MACHINES = 2


def cluster_file(port: int) -> dict[str, object]:
    """Every key that Ray's autoscaler reads without a default."""
    address = f"127.0.0.1:{port}"
    lists = (
        "cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands",
        "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    )  # fmt: skip
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MACHINES}
    return {
        "cluster_name": "growing",
        "max_workers": MACHINES,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        # Without an address machines look for the head at Ray's default port, where there may be another one.
        "provider": {
            "type": "fake_multinode", "gcs_address": address, "head_node_id": HEAD, "launch_multiple": True
        },
        "head_node_type": "head",
        "available_node_types": {"head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, "w": worker},
        **{name: {} for name in ("auth", "docker", "head_node", "worker_nodes", "file_mounts")},
        **{name: [] for name in lists},
        "file_mounts_sync_continuously": False,
    }  # fmt: skip


@contextlib.contextmanager
def growing_cluster() -> Iterator[str]:
    """Yields its address. Its processes are a separate session and terminated by their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="idc"))  # short: a socket's path has 107 bytes at most
    (folder / "cluster.json").write_text(json.dumps(cluster_file(port)))
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--port={port}", "--num-cpus=0", "--object-store-memory=80000000", "--include-dashboard=false"),
        *(f"--temp-dir={folder}", f"--autoscaling-config={folder}/cluster.json"),
    ]
    log = folder / "head.log"
    process = subprocess.Popen(
        command,
        # Images that take two seconds: one worker must not be done before the other is there.
        env=environment("slow:2") | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        limit = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        for pid in session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def session(leader: int) -> list[int]:
    """Processes of a session, by their ids."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(entry.name))
    return found


def test_grows_from_no_worker_to_the_most_and_finishes(photos: Path, undisturbed: pa.Table, tmp_path: Path) -> None:
    """Catches a pool sized by a cluster that is still empty, one that asks for its machines one by one, a wait that
    times out, and one that says nothing."""
    output = tmp_path / "out"
    with growing_cluster() as address, contextlib.ExitStack() as ending:
        settings = {"actors.ray_address": address, "actors.max_size": MACHINES, "actors.images_per_step": 1}
        process = start(photos, output, settings)
        ending.callback(process.kill)
        wait_for(lambda: len({each["node_id"] for each in at_work(output)}) == MACHINES, process)
        _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert rows(output).equals(undisturbed)
    assert f"1 to {MACHINES} workers, {MACHINES} at the start" in told
    assert "waiting for the cluster to grow; each of 1 to 2 workers takes 1 CPU, of which 0 of 0 are free" in told
    assert "Traceback" not in told
