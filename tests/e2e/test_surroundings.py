"""What the machine is like where a job runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads /proc")]

PROGRAM = """
import contextlib, os
from pathlib import Path
import ray
from idc_ray.pipeline import cluster

def below(pid):
    found = [pid]
    with contextlib.suppress(OSError):  # a process or thread that has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += below(int(child))
    return found

def sockets(pid):
    found = set()
    with contextlib.suppress(OSError):
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                link = os.readlink(each)
                found |= {link[8:-1]} if link.startswith("socket:[") else set()
    return found

cluster.join(None)
ours = set().union(*map(sockets, below(os.getpid())))
for name in ("tcp", "tcp6"):
    for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in ours:
            print("listens", fields[1])
for pid in below(os.getpid()):
    with contextlib.suppress(OSError):
        print("runs", Path(f"/proc/{pid}/cmdline").read_bytes().replace(bytes(1), b" ").decode())
print("answers", ray.get(ray.remote(lambda: 42).remote()))
print("temp", ray._private.worker._global_node.get_temp_dir_path())
"""


def test_a_long_tmpdir_works_and_the_cluster_listens_on_loopback_only(tmp_path: Path) -> None:
    """Catches Ray's "AF_UNIX path length", its ports that are open on all interfaces, and processes without a use."""
    long = tmp_path / ("x" * 110)
    long.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"TMPDIR": str(long)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = [line.partition(" ") for line in done.stdout.splitlines()]
    assert ("answers", " ", "42") in said
    addresses = [value.rpartition(":")[0] for what, _, value in said if what == "listens"]
    assert len(addresses) > 2
    processes = [value for what, _, value in said if what == "runs"]
    assert any("raylet" in each for each in processes)
    assert not [
        each for each in processes if "dashboard/dashboard.py" in each or "autoscaler" in each.partition(" --")[0]
    ]
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(addresses) <= loopback, addresses
    assert [value for what, _, value in said if what == "temp"] == [f"/tmp/ray-{os.getuid()}"]
