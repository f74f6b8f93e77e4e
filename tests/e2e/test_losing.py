"""Machines that come and go under a running job: the rows are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.nodes import Nodes, several_nodes
from idc_ray.store.filesystem import resolve
from idc_ray.store.quarantine import list_quarantined
from tests.crashes import list_attempts
from tests.e2e.conftest import environment, rows, start, wait_for

pytestmark = pytest.mark.timeout(600)

#: Fills the object store of the machine that it runs on, and holds that until its stdin is closed.
HOG = """
import sys, numpy, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
held = [ray.put(numpy.ones(8 * 2**20, numpy.uint8)) for _ in range(12)]
print("full", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two machines with a GPU each, as far as Ray knows: so images are read by processes of their own.

    An image takes two seconds, so that there is work left when a machine joins.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment("slow:2").items():  # of the machines: workers inherit theirs, not the driver's
            patch.setenv(name, value)
        with several_nodes(2, num_cpus=1, num_gpus=1) as nodes:
            yield nodes


@contextlib.contextmanager
def full_object_store(nodes: Nodes) -> Iterator[None]:
    """The store of the driver's machine is full of what another driver holds."""
    hog = subprocess.Popen(
        [sys.executable, "-c", HOG, nodes.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert hog.stdin is not None and hog.stdout is not None
    try:
        assert hog.stdout.readline() == "full\n"
        yield
    finally:
        hog.stdin.close()
        hog.wait(60)


def at_work(output: Path) -> list[dict[str, Any]]:
    """What workers state."""
    found = []
    for folder, _, names in os.walk(output / "inflight"):  # unlike glob it does not mind a folder that vanishes
        for name in names:
            if name.startswith(("read-", ".")):  # readers' statements, and files that are being written
                continue
            with contextlib.suppress(FileNotFoundError, ValueError):  # cleared between the listing and the reading
                found.append(json.loads(Path(folder, name).read_text()))
    return found


def test_machines_lost_and_joined_in_mid_image_with_a_full_object_store(
    nodes: Nodes, photos: Path, undisturbed: pa.Table, tmp_path: Path
) -> None:
    """One run, one story. Catches an image that is lost with its machine or blamed for it, a worker killed with its
    machine alive that ends the job, a machine that joins and never gets work, and a wait for room in a full store."""
    output = tmp_path / "out"
    settings = {
        "iterations": 6, "actors.ray_address": nodes.address, "actors.images_per_step": 1, "actors.max_size": None,
        "actors.gpus": 1, "actors.device": "cpu",
    }  # fmt: skip
    with full_object_store(nodes), contextlib.ExitStack() as ending:
        process = start(photos, output, settings)
        ending.callback(process.kill)

        def working_on(node: Any) -> bool:
            return any(each["node_id"] == node.node_id for each in at_work(output))

        lost, killed = nodes.workers
        wait_for(lambda: working_on(lost), process)
        nodes.remove(lost)
        wait_for(lambda: working_on(killed), process)
        for each in at_work(output):
            if each["node_id"] == killed.node_id:
                os.kill(each["pid"], signal.SIGKILL)
        joined = nodes.add(num_cpus=1, num_gpus=1)
        wait_for(lambda: working_on(joined), process)
        _, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert rows(output).equals(undisturbed)
    store = resolve(str(output))
    assert not list_quarantined(store, undisturbed["config_digest"][0].as_py())
    assert not list_attempts(store), "neither image was alone at its worker's death"
    assert not list((output / "inflight").rglob("*.json"))
