"""Peak memory of the job with N and with 4 N images: python benchmarks/memory.py --output FILE.json

Memory should not depend on the number of images. Each run is a separate process; the peak resident
set (VmHWM) of the driver and its child processes is read every half second. Settings are the defaults,
except for fewer iterations, which do not affect memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import ROOT, machine, parser, write_pieces, write_result

#: Goal: largest ratio of peak memory for four times the images.
GOAL = 1.15
SAMPLE_SECONDS = 0.5
QUICK = ["--rlff.num_sets", "2", "--rlff.num_frequencies", "64", "--rlff.num_held_out", "64"]


def _status(pid: int) -> tuple[int, int]:
    """Parent and peak resident set in KiB of a process; (0, 0) if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["PPid"][0]), int(fields.get("VmHWM", ["0"])[0])


def _kind(pid: int) -> str:
    """Kind of a process, from the name that Ray gives its workers' command lines."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    if "CondenseWorker" in command:
        return "worker"
    return "reader" if command.startswith("ray::") and "ReadImage" in command else "other"


def peaks_below(driver: int) -> dict[str, float]:
    """Largest peak in MiB by kind: ``driver``, ``worker``, ``reader``."""
    processes = {int(path.name): _status(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    below: set[int] = set()
    found = {driver}
    while found:
        below |= found
        found = {pid for pid, (parent, _) in processes.items() if parent in below} - below
    peaks: dict[str, float] = {}
    for pid in below:
        kind = "driver" if pid == driver else _kind(pid)
        if kind in ("driver", "worker", "reader"):
            peaks[kind] = max(peaks.get(kind, 0.0), processes.get(pid, (0, 0))[1] / 1024)
    return peaks


def run(images: Path, output: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run the job and measure its memory."""
    command = [
        sys.executable, str(ROOT / "jobs" / "condense.py"), "--input", str(images), "--output", str(output),
        "--iterations", str(arguments.iterations), "--actors.max_size", "1", "--gallery_images", "0",
        "--report_images", "0",
        *(QUICK if arguments.quick else []),
    ]  # fmt: skip
    peaks: dict[str, float] = {}
    with (output.parent / f"{output.name}.log").open("w") as log:
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            for kind, peak in peaks_below(process.pid).items():
                peaks[kind] = max(peaks.get(kind, 0.0), peak)
            time.sleep(SAMPLE_SECONDS)
    if process.returncode or "worker" not in peaks:
        raise SystemExit(f"the job ended with {process.returncode}:\n{Path(log.name).read_text()[-3000:]}")
    return {**peaks, "seconds": time.monotonic() - begin}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=50, help="N; default 50")
    options.add_argument("--iterations", type=int, default=3, help="steps per image; default 3")
    arguments = options.parse_args()
    if arguments.quick:
        arguments.images, arguments.iterations = 4, 2
    print(machine())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in (arguments.images, 4 * arguments.images):
            images = write_pieces(arguments.input, Path(scratch) / f"images{count}", count)
            rows.append({"images": count, **run(images, Path(scratch) / f"output{count}", arguments)})
            print(", ".join(f"{name} {value:.0f}" for name, value in rows[-1].items()), "(MiB)", flush=True)
    growth = {kind: rows[1][kind] / rows[0][kind] for kind in ("driver", "worker")}
    print(", ".join(f"{kind} x {ratio:.3f}" for kind, ratio in growth.items()), f"(goal: at most {GOAL})")
    write_result("memory", arguments, {"rows": rows, "growth": growth, "goal": GOAL})


if __name__ == "__main__":
    main()
