"""A Ray head of one's own, with its dashboard, as users start one; and jobs submitted to it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True)
class Head:
    """A running head.

    Args:
        address: of its dashboard.
        folder: its temporary folder, short: sockets below it may have names of 107 bytes only.
    """

    address: str
    folder: Path

    def submit(self, name: str, entrypoint: list[str], **environment: str) -> None:
        """By the words of the README, from the top of the repository."""
        command = ["job", "submit", "--no-wait", "--submission-id", name]
        command += ["--working-dir", ".", "--runtime-env", "runtime_env.yaml", "--", *entrypoint]
        done = subprocess.run(
            [*RAY, *command],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": self.address} | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    def job(self, name: str) -> dict[str, Any]:
        return self._ask(f"/api/jobs/{name}")

    def logs(self, name: str) -> str:
        return str(self._ask(f"/api/jobs/{name}/logs")["logs"])

    def stop(self, name: str) -> None:
        """What `ray job stop` asks for."""
        self._ask(f"/api/jobs/{name}/stop", method="POST")

    def ended(self, name: str, seconds: float = 240) -> dict[str, Any]:
        """The job, once it has ended."""
        ends = ("SUCCEEDED", "FAILED", "STOPPED")
        wait(lambda: self.job(name)["status"] in ends, seconds, lambda: self.logs(name))
        return self.job(name)

    def supervisor_log(self, name: str) -> str:
        """What Ray says of how it started and ended the job."""
        return (self.folder / "session_latest" / "logs" / "jobs" / f"supervisor-{name}.log").read_text()

    def metrics(self) -> str:
        """What Prometheus would collect from the node."""
        [node] = self._ask("/nodes?view=summary")["data"]["summary"]
        with urllib.request.urlopen(f"http://127.0.0.1:{node['raylet']['metricsExportPort']}/metrics") as answer:
            return str(answer.read().decode())

    def _ask(self, path: str, method: str = "GET") -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(self.address + path, method=method), timeout=30) as answer:
            return dict(json.load(answer))


def wait(condition: Callable[[], bool], seconds: float, told: Callable[[], str] = str) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            pytest.fail(f"it never got that far: {told()}")
        time.sleep(0.05)


@contextlib.contextmanager
def running_head(cpus: int) -> Iterator[Head]:
    """A head on other ports than Ray's default; its processes are terminated by their ids."""
    ports = free_ports(4)
    folder = Path(tempfile.mkdtemp(prefix="idc"))
    options = ["--head", "--block", "--disable-usage-stats", f"--num-cpus={cpus}", f"--temp-dir={folder}"]
    kinds = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
    options += [f"--{kind}={port}" for kind, port in zip(kinds, ports, strict=True)]
    process = subprocess.Popen(
        [*RAY, "start", *options],
        cwd=folder,  # a worker that finds our package here would not need what the job takes along
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"RAY_metrics_report_interval_ms": "1000", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
        stdout=(folder / "head.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    head = Head(f"http://127.0.0.1:{ports[1]}", folder)
    try:
        wait(lambda: process.poll() is not None or answers(head), 120, (folder / "head.log").read_text)
        assert process.poll() is None, (folder / "head.log").read_text()
        yield head
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for pid in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def die_with_parent() -> None:
    """SIGTERM when the test's process is gone: a head that outlives it would work on indefinitely."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def answers(head: Head) -> bool:
    try:
        head._ask("/api/version")
        head._ask("/api/jobs/")
    except (OSError, ValueError, TypeError):
        return False
    return True


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def processes_of(folder: Path) -> list[int]:
    """Every process that has the head's folder in its command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found
