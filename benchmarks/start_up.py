"""Start-up time of the commands: python benchmarks/start_up.py --output FILE.json

One photograph of 480 x 320 is condensed with default settings, and a small student is trained for 20 steps on the
result, each by its command. The output shows the driver's stages, in wall time since the command and in CPU seconds,
and the CPU seconds of all processes: the driver, Ray and the workers. On a busy machine only CPU seconds are
meaningful. Linux only.

``--against CHECKOUT`` alternates with another version and prints the ratios of the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]

SIDES = ("condense", "train")
#: Of a training whose work takes no time.
TRAINING = ["--model", "edsr_small", "--iterations", "2", "--batch-size", "1"]

#: An environment variable that all processes of a measured command inherit; its value names the run.
MARK = "IDC_RAY_START_UP"
TICKS = os.sysconf("SC_CLK_TCK")
READ_SECONDS = 0.05

#: Names of processes by a part of their command line; the first match counts.
PROCESSES = {
    "ray::DashboardAgent": "Ray: agents",
    "ray::RuntimeEnvAgent": "Ray: agents",
    "dashboard/agent.py": "Ray: agents",
    "runtime_env/agent": "Ray: agents",
    "ray::": "workers",
    "default_worker.py": "workers",
    "gcs_server": "Ray: gcs, raylet, monitors",
    "raylet/raylet": "Ray: gcs, raylet, monitors",
    "monitor.py": "Ray: gcs, raylet, monitors",
    "dashboard.py": "Ray: dashboard",
    "training.local_worker": "workers",
    "--side": "driver",
}

Stage = tuple[str, float, float]


def measured(side: str, arguments: Sequence[str]) -> None:
    """Run a command in this process; the last printed line has the stages: name, wall time, CPU time."""
    begin = float(os.environ["IDC_RAY_BEGIN"])
    stages: list[Stage] = []

    def note(name: str) -> None:
        stages.append((name, time.time() - begin, time.process_time()))

    from idc_ray.cli import run_job
    from idc_ray.commands import main
    from idc_ray.pipeline import progress

    def job(given: Sequence[str]) -> int:
        code = main(given)
        note("the rest")
        print(json.dumps(stages))
        return code

    class Noted(progress.Heartbeat):
        """Records the stages of the jobs."""

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            super().__exit__(kind, error, trace)
            note(self._now if isinstance(self._now, str) else "following the workers")

    def noting(update: Callable[..., None]) -> Callable[..., None]:
        def noted(self: Any, event: Any) -> None:
            if "first result" not in [name for name, *_ in stages]:
                note("first result")
            update(self, event)

        return noted

    note("reading the settings")
    with mock.patch.object(progress, "Heartbeat", Noted):
        module, name = (
            ("idc_ray.training.progress", "TrainProgress") if side == "train" else (progress.__name__, "Progress")
        )
        shown = getattr(__import__(module, fromlist=[name]), name)
        with mock.patch.object(shown, "update", noting(shown.update)):
            run_job(job, [side, *arguments])


class Watched:
    """CPU seconds of all processes whose environment has ``mark``, whatever their parent is."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{MARK}={mark}".encode()
        self._others: set[int] = set()
        self._seconds: dict[int, float] = {}
        self._names: dict[int, str] = {}

    def read(self) -> None:
        """Read the CPU times; to be called often, as time after a process's last reading is not counted."""
        pids = {int(entry.name) for entry in os.scandir("/proc") if entry.name.isdecimal()}
        for pid in pids - self._others:
            folder = Path("/proc", str(pid))
            try:
                if pid not in self._seconds and self._mark not in (folder / "environ").read_bytes().split(b"\0"):
                    self._others.add(pid)
                    continue
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended, or belongs to another user
                continue
            self._seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS  # in user mode, and in the kernel
            name = next((name for part, name in PROCESSES.items() if part in command), None)
            if name is not None:
                self._names[pid] = name

    def seconds(self) -> dict[str, float]:
        """CPU seconds by the name of the processes, largest first."""
        out: Counter[str] = Counter()
        for pid, seconds in self._seconds.items():
            out[self._names.get(pid, "others")] += seconds
        return dict(out.most_common())


def run(side: str, package: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a command of a checkout in a separate process."""
    mark, begin = uuid.uuid4().hex, time.time()
    environment = os.environ | {"PYTHONPATH": str(package), MARK: mark, "IDC_RAY_BEGIN": str(begin)}
    command = [sys.executable, __file__, "--side", side, "--", *arguments]
    watched = Watched(mark)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, cwd=package)
        while process.poll() is None:
            watched.read()
            time.sleep(READ_SECONDS)
        wall = time.time() - begin
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode:
        raise SystemExit(f"{side} ended with {process.returncode}")
    seconds = watched.seconds()
    return {"clock": wall, "cpu": sum(seconds.values()), "stages": json.loads(lines[-1]), "processes": seconds}


def show(title: str, result: dict[str, Any]) -> None:
    print(f"\n{title}: {result['clock']:.1f} s of wall time, {result['cpu']:.1f} CPU seconds in all processes")
    print(f"  {'until, s':>8} {'CPU, s':>7}  stages of the driver")
    for name, clock, cpu in result["stages"]:
        print(f"  {clock:8.1f} {cpu:7.2f}  {name}")
    print(f"  {'CPU, s':>16}  processes")
    for name, seconds in result["processes"].items():
        print(f"  {seconds:16.2f}  {name}", flush=True)


def options_of(side: str, images: Path, output: Path) -> list[str]:
    if side == "condense":
        return ["--input", str(images), "--output", str(output)]
    return ["--data", str(images), "--output", str(output), *TRAINING]


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from benchmarks.common import machine, write_pieces

    images = write_pieces(arguments.input, scratch / "images", 1)
    versions = {"this version": ROOT}
    if arguments.against is not None:
        versions["the other"] = arguments.against.resolve()
    print(f"{arguments.rounds} rounds, {machine()}")
    sides = SIDES if arguments.only is None else (arguments.only,)
    results: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        for side in sides:
            row: dict[str, Any] = {"side": side}
            for version, package in versions.items():
                output = scratch / f"{side}_{version.replace(' ', '_')}{number}"
                row[version] = run(side, package, options_of(side, images, output))
                show(f"{side}, {version}", row[version])
            results.append(row)
    for side in sides if arguments.against is not None else ():
        rows = [row for row in results if row["side"] == side]
        for figure in ("cpu", "clock"):
            quotient = statistics.median(row["the other"][figure] / row["this version"][figure] for row in rows)
            print(f"{side}: the other version takes {quotient:.2f} times as long ({figure})")
    return {"rounds": results}


def main() -> None:
    if "--side" in sys.argv:  # before importing the benchmarks, which would count as start-up
        position = sys.argv.index("--side")
        measured(sys.argv[position + 1], sys.argv[position + 3 :])
        return
    sys.path.insert(0, str(ROOT))
    from benchmarks.common import parser, write_result

    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=1, help="number of alternating runs of each version")
    options.add_argument("--only", choices=SIDES, help="one of the two commands")
    options.add_argument("--against", type=Path, metavar="CHECKOUT", help="another version of this repository")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_result("start_up", arguments, measure(arguments, Path(scratch)))


if __name__ == "__main__":
    main()
